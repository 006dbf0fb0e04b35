// A completion request from its HTTP exchange to the workers and back.
#pragma once

#include <boost/asio/awaitable.hpp>
#include <boost/asio/thread_pool.hpp>
#include <memory>

#include "cluster/conductor.h"
#include "server/http.h"
#include "server/openai.h"
#include "server/served_model.h"

namespace tandem::server {

// Submits the request, waits for its tokens and answers, at once or as events. Cancels it when the client
// goes. `context` is kept alive by what the conductor may still call; `tokenizing` is joined before what is
// given here goes. HttpError and InputError as for any handler.
boost::asio::awaitable<void> complete(Exchange& exchange, CompletionRequest request,
                                      cluster::Conductor& conductor, const ServedModel& model,
                                      std::shared_ptr<boost::asio::io_context> context,
                                      boost::asio::thread_pool& tokenizing);

}  // namespace tandem::server
