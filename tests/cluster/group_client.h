// A group of real worker processes for tests, and requests that are waited for.
#pragma once

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <future>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "cluster/conductor.h"
#include "models/config.h"

namespace tandem::cluster {

inline std::filesystem::path source_folder() { return TANDEM_SOURCE_DIR; }

inline nlohmann::json read_golden(const std::filesystem::path& file) {
  std::ifstream stream(file);
  return nlohmann::json::parse(stream);
}

// Ranks on this machine: of each stage, the shares of its ranks.
inline parallel::Plan local_plan(const std::vector<std::vector<double>>& stages, int layers) {
  const auto ranges = parallel::split_layers(std::vector<double>(layers, 1), static_cast<int>(stages.size()));
  parallel::Plan plan;
  for (std::size_t i = 0; i < stages.size(); ++i) {
    plan.stages.push_back({ranges[i].begin, ranges[i].end, {}});
    for (const double share : stages[i]) plan.stages.back().ranks.push_back({"local", share});
  }
  return plan;
}

inline std::unique_ptr<Conductor> start_local(const std::filesystem::path& model,
                                              const std::vector<std::vector<double>>& stages) {
  const auto plan = local_plan(stages, models::load_config(model).layers);
  return std::make_unique<Conductor>(ConductorOptions{.model = model.string(),
                                                      .plan = plan,
                                                      .device = "cpu",
                                                      .fp8 = "float32",
                                                      .activations = "float32",
                                                      .program = TANDEM_PROGRAM});
}

struct Outcome {
  std::vector<int> tokens;
  std::map<int, std::vector<float>> logits;  // by position
  engine::NllEvent nll;
  engine::DoneEvent done;
  std::string refused;  // why, empty where it was served
  std::string lost;
};

// Waits until the request has ended.
inline Outcome ask(Conductor& conductor, engine::Request request) {
  auto outcome = std::make_shared<Outcome>();
  auto ended = std::make_shared<std::promise<void>>();
  conductor.submit(
      std::move(request),
      [outcome, ended](const engine::Event& event) {
        if (const auto* token = std::get_if<engine::TokenEvent>(&event))
          outcome->tokens.push_back(token->token);
        if (const auto* logits = std::get_if<engine::LogitsEvent>(&event))
          outcome->logits[logits->position] = logits->logits;
        if (const auto* nll = std::get_if<engine::NllEvent>(&event)) outcome->nll = *nll;
        if (const auto* refused = std::get_if<engine::RefusedEvent>(&event)) {
          outcome->refused = refused->message;
          ended->set_value();
        }
        if (const auto* done = std::get_if<engine::DoneEvent>(&event)) {
          outcome->done = *done;
          ended->set_value();
        }
      },
      [outcome, ended](const std::string& why) {
        outcome->lost = why;
        ended->set_value();
      });
  if (ended->get_future().wait_for(std::chrono::seconds(120)) != std::future_status::ready) {
    ADD_FAILURE() << "the request did not end";
  }
  return *outcome;
}

inline engine::GenerateRequest greedy(std::vector<int> prompt, int max_tokens,
                                      std::vector<int> end_ids = {}) {
  engine::GenerateRequest request{
      .prompt = std::move(prompt), .max_tokens = max_tokens, .end_ids = std::move(end_ids)};
  request.sampling.temperature = 0;
  return request;
}

}  // namespace tandem::cluster
