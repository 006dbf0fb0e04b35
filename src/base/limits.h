// Every bound of Tandem: sizes, counts, waits. Nothing grows or waits without one of these.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>

namespace tandem::limits {

using std::chrono::milliseconds;
using std::chrono::seconds;

// Cluster.
inline constexpr int ranks = 64;
inline constexpr int cores = 1024;                         // of one machine; threads of one worker
inline constexpr int plan_layers = 100'000;                // that a plan's file may number
inline constexpr int plan_share = 1'000'000;               // of a rank there
inline constexpr std::size_t pipe_line_bytes = 64u << 20;  // logits of a 256 k vocabulary are 5 MB of JSON
inline constexpr milliseconds worker_start{30'000};        // from fork or ssh to its first line
inline constexpr milliseconds worker_reap{200};  // from end-of-file to knowing how the process ended
inline constexpr milliseconds conductor_tick{100};
inline constexpr milliseconds worker_status{5'000};  // from a request's end to every rank's word on it
inline constexpr milliseconds worker_status_poll{1};
inline constexpr milliseconds sign_of_life{5'000};     // between two words of a worker, whatever it does
inline constexpr milliseconds silence{60'000};         // of a worker, after which it counts as stopped
inline constexpr milliseconds worker_exit{3'000};      // from end-of-file to kill
inline constexpr std::chrono::hours worker_pipe{24};   // for the conductor to write, or to read a last word
inline constexpr milliseconds failure_gathering{400};  // from the first sign of a failure to the verdict

// Kernels.
inline constexpr std::chrono::microseconds kernel_spin{2'000};  // of an idle thread, before it sleeps
// Of a CPU stream's results, those that have memory before they are computed: two, or more of so many bytes
// together.
inline constexpr int operations_ahead = 2;
inline constexpr std::int64_t bytes_ahead = 8 << 20;

// Data plane.
inline constexpr milliseconds connect{30'000};  // the whole mesh
inline constexpr milliseconds connect_retry{50};
inline constexpr std::size_t pending_connections = 64;
inline constexpr std::chrono::microseconds spin{2'000};  // of a collective, before it sleeps in poll(2)
inline constexpr std::chrono::microseconds bulk_spin{
    20};  // of one of so many bytes, which take longer than to wake
inline constexpr std::size_t bulk_bytes = 512u << 10;
inline constexpr milliseconds handshake{2'000};          // one connection's proof of the secret
inline constexpr milliseconds collective{30'000};        // a peer's silence while the model loads
inline constexpr milliseconds step_collective{10'000};   // and in a step; an idle group steps more often
inline constexpr milliseconds stage_collective{30'000};  // the same where one waits for other stages' layers
inline constexpr std::size_t direct_reduce_bytes = 256u
                                                   << 10;    // above it, three ranks and more reduce in parts
inline constexpr std::size_t reduce_slice_bytes = 1u << 20;  // what a reduction receives of a peer at once
inline constexpr std::size_t links = 8;                      // between two ranks
inline constexpr milliseconds further_links{2'000};          // what links beside the first may cost the start
inline constexpr std::size_t stripe_bytes = 256u << 10;      // smaller messages go over the first link alone
inline constexpr std::size_t stripe_chunk_bytes = 64u << 10;   // what a link is handed at once
inline constexpr std::size_t stripe_queue_bytes = 256u << 10;  // of a link, whatever its speed
inline constexpr milliseconds stripe_queue{10};                // of a link at its speed
inline constexpr milliseconds stripe_sample{5};   // how long a link is busy for a figure of its speed
inline constexpr milliseconds stripe_memory{50};  // and for how long the figure counts
inline constexpr milliseconds stripe_poll{1};     // how soon a link with a full queue is looked at again
inline constexpr std::size_t stripe_window_bytes = 64u << 20;  // what a reduction receives over striped links
inline constexpr std::size_t socket_call_bytes = 1u << 30;     // macOS takes no more than 2 GB a call
inline constexpr milliseconds train_collective{120'000};       // in a step of training, whose ranks meet once
inline constexpr int splits_of_a_group = 16;
inline constexpr std::uint64_t training_graph_bytes =
    400'000'000;  // of operations that a GPU is given at once
inline constexpr std::size_t broadcast_bytes = 64u << 20;
inline constexpr milliseconds idle_step{5'000};  // an idle rank 0 sends an empty step this often

// Weights from another rank.
inline constexpr std::chrono::hours kept_slices{4};  // a rank's silence while it reads those that it kept
inline constexpr milliseconds progress_every{100};   // a loading rank's word on how far it is

// Files.
inline constexpr std::size_t small_file_bytes = 64u << 20;
inline constexpr std::size_t safetensors_header_bytes = 100u << 20;
inline constexpr std::size_t read_chunk_bytes = 16u << 20;
inline constexpr std::size_t write_chunk_bytes = 16u << 20;
inline constexpr std::size_t quantize_block_bytes = 8u << 20;  // of a matrix, that a thread quantises at once
inline constexpr unsigned quantize_threads = 16;

// Downloads from the hub.
inline constexpr std::size_t hub_connections = 8;            // files fetched at once
inline constexpr std::size_t hub_listing_bytes = 64u << 20;  // a model's list of files
inline constexpr std::uint64_t hub_file_bytes = 1ull << 44;
inline constexpr std::size_t hub_path_bytes = 1024;      // of a file within its model
inline constexpr std::size_t hub_path_part_bytes = 240;  // most file systems take 255
inline constexpr int hub_redirects = 5;
inline constexpr int hub_retries = 6;  // of a file in a row without progress, by default
inline constexpr int hub_retries_most = 100;
inline constexpr std::uint64_t hub_progress_bytes = 1u << 20;  // that much further makes up for a failure
inline constexpr milliseconds hub_backoff{500};  // before the first retry, doubled for each more
inline constexpr milliseconds hub_backoff_most{16'000};
inline constexpr seconds hub_retry_after{300};  // a server that asks for longer is not waited for
inline constexpr seconds hub_connect{20};
inline constexpr seconds hub_silence{30};  // a transfer without a byte is cut
inline constexpr milliseconds hub_poll{100};
inline constexpr milliseconds hub_lock_poll{250};
inline constexpr std::chrono::hours hub_lock{24};  // waiting for another pull of the same model

// Memory that the cache leaves free, of each memory that ranks are in: the larger of the two.
inline constexpr double memory_margin_share = 0.05;
inline constexpr std::uint64_t memory_margin_bytes = 256u << 20;

// Requests.
inline constexpr int prefill_chunk_tokens = 512;
inline constexpr int stage_chunk_tokens = 128;  // the same of pipeline stages, which small chunks fill sooner
inline constexpr int stage_chunks = 8;          // of a long prompt there, at least
inline constexpr int score_chunk_tokens = 128;  // every row of it has logits
inline constexpr std::size_t batch_sequences = 32;   // that a step computes at once
inline constexpr std::size_t overlapping_steps = 2;  // of a lone GPU: one computed, one to go on with
inline constexpr std::size_t queued_requests = 256;
inline constexpr std::size_t worker_inbox = 4096;  // messages; more than requests and their cancels can be
inline constexpr milliseconds interrupt_poll{50};  // how soon Ctrl-C is seen
inline constexpr std::size_t stop_strings = 4;
inline constexpr std::size_t stop_string_bytes = 1024;

// Training.
inline constexpr int lora_rank = 1024;
inline constexpr int text_tokens = 1 << 24;
inline constexpr int vocabulary_least = 512;  // that a tokenizer is trained for: bytes and special tokens fit
inline constexpr int vocabulary_most = 1 << 20;
inline constexpr std::size_t config_options =
    1000;  // of a YAML file, whose aliases may repeat themselves without end
inline constexpr std::size_t config_depth = 8;
inline constexpr std::size_t skipped_lines_named = 100;
inline constexpr int steps_left_out = 5;              // in a row, before a run counts as diverged
inline constexpr int steps_left_out_of_float16 = 50;  // which finds the scale of its loss in some twenty
inline constexpr std::uintmax_t weight_samples = 64;  // of a file of weights, by which a model is known
inline constexpr std::uintmax_t weight_sample_bytes = 4096;

// HTTP.
inline constexpr std::size_t http_header_bytes = 64u << 10;
inline constexpr std::size_t http_body_bytes = 16u << 20;
inline constexpr std::size_t http_connections = 1024;
inline constexpr int json_depth = 100;
inline constexpr milliseconds http_client_check{500};  // how soon a client that went is noticed
inline constexpr milliseconds http_farewell{500};      // for answers under way when the group is lost
inline constexpr milliseconds http_accept_pause{100};
inline constexpr milliseconds http_linger{1'000};  // taking in the rest of a refused request
inline constexpr seconds http_idle{75};
inline constexpr seconds http_read{30};
inline constexpr seconds http_write{30};

}  // namespace tandem::limits
