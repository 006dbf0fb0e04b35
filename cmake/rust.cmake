# tandem_text_rust: the static library over the Hugging Face tokenizers and minijinja crates (rust/).
# Without sanitizers in every preset, so all presets share one build of it.
find_program(CARGO cargo REQUIRED HINTS $ENV{HOME}/.cargo/bin)
set(rust_target_dir ${CMAKE_SOURCE_DIR}/build/rust)
set(rust_library ${rust_target_dir}/release/libtandem_text.a)
file(GLOB_RECURSE rust_sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/rust/src/*.rs)

add_custom_command(
  OUTPUT ${rust_library}
  COMMAND ${CARGO} build --release --locked --quiet --manifest-path ${CMAKE_SOURCE_DIR}/rust/Cargo.toml
          --target-dir ${rust_target_dir}
  DEPENDS ${rust_sources} ${CMAKE_SOURCE_DIR}/rust/Cargo.toml ${CMAKE_SOURCE_DIR}/rust/Cargo.lock
  COMMENT "Building the Rust text library"
  USES_TERMINAL VERBATIM)
add_custom_target(tandem_text_rust_build DEPENDS ${rust_library})

add_library(tandem_text_rust INTERFACE)
add_dependencies(tandem_text_rust tandem_text_rust_build)
target_include_directories(tandem_text_rust INTERFACE ${CMAKE_SOURCE_DIR}/rust/include)
target_link_libraries(tandem_text_rust INTERFACE ${rust_library} Threads::Threads ${CMAKE_DL_LIBS})
