# SPDX-License-Identifier: Apache-2.0
# The targets moe_tkg::moe_tkg (shared) and moe_tkg::moe_tkg_static.
include(CMakeFindDependencyMacro)
find_dependency(Threads)
include(${CMAKE_CURRENT_LIST_DIR}/moe_tkgTargets.cmake)
