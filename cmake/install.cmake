# SPDX-License-Identifier: Apache-2.0
# install.cmake - what `cmake --install` copies: headers, libraries, pkg-config and CMake packages, tool, man page.

include(CMakePackageConfigHelpers)
set(moe_package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/moe_tkg)

set(moe_headers include/moe_tkg.h)
set(moe_libraries moe_tkg moe_tkg_static)
if(MOE_BUILD_IO)
    list(APPEND moe_headers include/moe_tkg_io.h)
    list(APPEND moe_libraries moe_tkg_io moe_tkg_io_static)
endif()
install(FILES ${moe_headers} DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(TARGETS ${moe_libraries} EXPORT moe_tkgTargets
    LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR} ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(EXPORT moe_tkgTargets NAMESPACE moe_tkg:: DESTINATION ${moe_package_dir})

configure_file(cmake/moe_tkgConfig.cmake moe_tkgConfig.cmake COPYONLY)
write_basic_package_version_file(moe_tkgConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/moe_tkgConfig.cmake ${PROJECT_BINARY_DIR}/moe_tkgConfigVersion.cmake
    DESTINATION ${moe_package_dir})

# Paths in moe_tkg.pc are relative to the file, so that `cmake --install --prefix` and moved trees work.  (APPEND of an
# absolute directory replaces the prefix.)
file(RELATIVE_PATH moe_pc_prefix ${CMAKE_INSTALL_FULL_LIBDIR}/pkgconfig ${CMAKE_INSTALL_PREFIX})
cmake_path(APPEND moe_pc_libdir "\${prefix}" ${CMAKE_INSTALL_LIBDIR})
cmake_path(APPEND moe_pc_includedir "\${prefix}" ${CMAKE_INSTALL_INCLUDEDIR})
configure_file(moe_tkg.pc.in moe_tkg.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/moe_tkg.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
if(MOE_BUILD_IO)
    configure_file(moe_tkg_io.pc.in moe_tkg_io.pc @ONLY)
    install(FILES ${PROJECT_BINARY_DIR}/moe_tkg_io.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
endif()

if(MOE_BUILD_TOOLS)
    install(TARGETS moe-tkg RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
    install(FILES docs/moe-tkg.1 DESTINATION ${CMAKE_INSTALL_MANDIR}/man1)
endif()
