# SPDX-License-Identifier: Apache-2.0
# The targets moe_tkg::moe_tkg and moe_tkg::moe_tkg_io (shared), moe_tkg::moe_tkg_static and moe_tkg::moe_tkg_io_static.
include(CMakeFindDependencyMacro)
find_dependency(Threads)
include(${CMAKE_CURRENT_LIST_DIR}/moe_tkgTargets.cmake)
