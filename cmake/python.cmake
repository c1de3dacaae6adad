# SPDX-License-Identifier: Apache-2.0
# python.cmake - what goes into the Python package beside its modules (pyproject.toml): the libraries, which find each other
# by $ORIGIN, and the tool, which needs neither.

install(TARGETS moe_tkg LIBRARY DESTINATION moe_tkg/lib)
add_library(moe_tkg_openmp MODULE python/openmp.c) # for PyTorch's threads; needs no OpenMP
install(TARGETS moe_tkg_openmp LIBRARY DESTINATION moe_tkg/lib)
if(MOE_BUILD_IO)
    set_target_properties(moe_tkg_io PROPERTIES INSTALL_RPATH "$ORIGIN")
    install(TARGETS moe_tkg_io LIBRARY DESTINATION moe_tkg/lib)
endif()
if(MOE_BUILD_TOOLS)
    install(TARGETS moe-tkg RUNTIME DESTINATION moe_tkg/bin)
endif()
