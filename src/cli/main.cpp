#include <fcntl.h>
#include <fmt/format.h>
#include <signal.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <clocale>
#include <filesystem>
#include <string_view>

#include "base/error.h"
#include "cli/environment.h"
#include "cli/help.h"
#include "cli/interrupt.h"
#include "cli/terminal.h"
#include "cli/verbs.h"
#include "cluster/worker.h"

namespace {

constexpr int exit_lost = 1;    // a worker, a link, a download, or a bug of ours
constexpr int exit_pipe = 141;  // as a shell shows the death by SIGPIPE
constexpr int exit_input = 2;   // the user can mend it

// A descriptor of the standard three that is closed would go to the next file opened. /dev/null takes its
// place; as stdout one that cannot be written, so that a lost result is an error.
void open_standard_descriptors() {
  for (const int descriptor : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) {
    if (::fcntl(descriptor, F_GETFD) >= 0) continue;
    ::open("/dev/null", descriptor == STDOUT_FILENO ? O_RDONLY : O_RDWR);
  }
}

int run_program(int argc, char** argv) {
  CLI::App program(
      "One workstation out of several machines: runs and trains language models split over them.", "tandem");
  program.set_version_flag("--version", std::string("tandem ") + TANDEM_VERSION);
  program.formatter(tandem::cli::help_formatter());
  program.group("Verbs");  // the verbs inherit it
  program.require_subcommand(1);
  int exit_code = 0;
  tandem::cli::add_demo(program, exit_code);
  tandem::cli::add_run(program, exit_code);
  tandem::cli::add_serve(program, exit_code);
  tandem::cli::add_pull(program, exit_code);
  tandem::cli::add_list(program);
  tandem::cli::add_rm(program);
  tandem::cli::add_quantize(program, exit_code);
  tandem::cli::add_train(program, exit_code);
  tandem::cli::add_tokenizer(program);
  tandem::cli::add_fuse(program, exit_code);
  tandem::cli::add_logits(program);
  tandem::cli::add_perplexity(program);
  tandem::cli::add_bench(program);
  program.footer(
      "`tandem VERB --help` tells a verb's options. Results go to stdout, all else to stderr.\n"
      "Exit codes: 0 done, 1 a worker, a link or a download was lost, 2 wrong input, 130 stopped by Ctrl-C.");
  // CLI11 would only say that a subcommand is missing.
  const auto verbs = program.get_subcommands([](const CLI::App*) { return true; });
  const auto named = [&](const CLI::App* verb) { return verb->get_name() == argv[1]; };
  if (argc > 1 && argv[1][0] != '-' && std::none_of(verbs.begin(), verbs.end(), named)) {
    throw tandem::InputError(fmt::format("there is no verb \"{}\"; tandem --help lists them", argv[1]));
  }
  try {
    program.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return program.exit(error);  // --help, --version
    const auto given = program.get_subcommands();
    if (given.empty()) throw tandem::InputError("give a verb; tandem --help lists them");
    throw tandem::InputError(
        fmt::format("{}; tandem {} --help tells more", error.what(), given.front()->get_name()));
  }
  return exit_code;
}

}  // namespace

int main(int argc, char** argv) {
  open_standard_descriptors();
  ::signal(SIGXFSZ, SIG_IGN);  // a file that may grow no further is a failed write, as a full disk is
  try {
    // The conductor's side of `ssh host tandem worker`; not a verb for users.
    if (argc == 2 && std::string_view(argv[1]) == "worker")
      return tandem::cluster::worker_main(tandem::cli::cache_folder());
    ::signal(SIGPIPE, SIG_IGN);
    std::setlocale(LC_CTYPE, "");
    return run_program(argc, argv);
  } catch (const tandem::cli::Interrupted&) {
    return tandem::cli::exit_interrupted;
  } catch (const tandem::InputError& error) {
    tandem::cli::note("tandem: {}\n", error.what());
    return exit_input;
  } catch (const tandem::ClusterError& error) {
    tandem::cli::note("tandem: {}\n", error.what());
    return exit_lost;
  } catch (const tandem::DownloadError& error) {
    tandem::cli::note("tandem: {}\n", error.what());
    return exit_lost;
  } catch (const tandem::cli::OutputError& error) {
    if (error.broken_pipe()) return exit_pipe;
    tandem::cli::note("tandem: {}\n", error.what());
    return exit_lost;
  } catch (const std::filesystem::filesystem_error& error) {
    tandem::cli::note("tandem: {}: {}\n", error.path1().string(), error.code().message());
    return exit_input;
  } catch (const std::exception& error) {
    tandem::cli::note("tandem: unexpected: {}\n", error.what());
    return exit_lost;
  }
}
