# SPDX-License-Identifier: Apache-2.0
# aarch64.cmake - toolchain: Debian's cross compiler for 64-bit Arm; programs run under qemu-user.
#
# Libraries of the target are Debian's own (`dpkg --add-architecture arm64`), which lie where
# compiler, CMake and qemu look.

set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_C_COMPILER aarch64-linux-gnu-gcc)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
set(CMAKE_CROSSCOMPILING_EMULATOR qemu-aarch64)
