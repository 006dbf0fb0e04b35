# What src/base, src/kernels and their tests need, for a machine that this one has no libraries of: headers, and
# GoogleTest from its source.
foreach(name nlohmann_json fmt spdlog)
  add_library(${name} INTERFACE IMPORTED)
endforeach()
add_library(nlohmann_json::nlohmann_json ALIAS nlohmann_json)
add_library(fmt::fmt ALIAS fmt)
add_library(spdlog::spdlog ALIAS spdlog)
target_compile_definitions(fmt INTERFACE FMT_HEADER_ONLY)
target_compile_definitions(spdlog INTERFACE SPDLOG_FMT_EXTERNAL)

set(INSTALL_GTEST OFF)
add_subdirectory(/usr/src/googletest/googletest ${CMAKE_BINARY_DIR}/googletest EXCLUDE_FROM_ALL)
if(NOT TARGET GTest::gtest_main)
  add_library(GTest::gtest_main ALIAS gtest_main)
endif()
