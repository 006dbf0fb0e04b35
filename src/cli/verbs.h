// One function a verb: adds it to the program, with its options and what it does. Each is in the file of its
// name.
#pragma once

#include <CLI/CLI.hpp>

namespace tandem::cli {

// A verb that ends with an exit code of its own (serve) sets `exit_code`.
void add_demo(CLI::App& program, int& exit_code);
void add_run(CLI::App& program, int& exit_code);
void add_serve(CLI::App& program, int& exit_code);
void add_pull(CLI::App& program, int& exit_code);
void add_list(CLI::App& program);
void add_rm(CLI::App& program);
void add_quantize(CLI::App& program, int& exit_code);
void add_fuse(CLI::App& program, int& exit_code);
void add_train(CLI::App& program, int& exit_code);
void add_tokenizer(CLI::App& program);
void add_logits(CLI::App& program);
void add_perplexity(CLI::App& program);
void add_bench(CLI::App& program);

}  // namespace tandem::cli
