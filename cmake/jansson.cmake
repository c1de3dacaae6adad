# SPDX-License-Identifier: Apache-2.0
# jansson.cmake - finds jansson, which reads and writes the tool's JSON, as the target moe_jansson.

find_path(JANSSON_INCLUDE_DIR jansson.h)
if(MOE_PYTHON) # a wheel goes where nobody has installed jansson
    find_library(JANSSON_LIBRARY NAMES libjansson.a jansson)
else()
    find_library(JANSSON_LIBRARY jansson)
endif()
mark_as_advanced(JANSSON_INCLUDE_DIR JANSSON_LIBRARY)
if(NOT JANSSON_INCLUDE_DIR OR NOT JANSSON_LIBRARY)
    message(FATAL_ERROR "The tool moe-tkg needs jansson, which is not here.\n"
        "  Install it:                      apt-get install libjansson-dev\n"
        "  or build without the tool:       cmake -D MOE_BUILD_TOOLS=OFF ...")
endif()
add_library(moe_jansson INTERFACE)
target_include_directories(moe_jansson SYSTEM INTERFACE ${JANSSON_INCLUDE_DIR})
target_link_libraries(moe_jansson INTERFACE ${JANSSON_LIBRARY})
