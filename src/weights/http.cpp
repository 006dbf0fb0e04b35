#include "weights/http.h"

#include <curl/curl.h>
#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <exception>
#include <stdexcept>
#include <utility>
#include <vector>

#include "base/limits.h"

namespace tandem::weights {
namespace {

using EasyHandle = std::unique_ptr<CURL, decltype(&curl_easy_cleanup)>;

struct Transfer {
  HttpRequest request;
  EasyHandle handle{nullptr, curl_easy_cleanup};
  HttpHead head;
  std::exception_ptr* thrown = nullptr;  // the client's
  char error[CURL_ERROR_SIZE] = "";
};

std::string trimmed(std::string_view text) {
  const auto begin = text.find_first_not_of(" \t\r\n");
  if (begin == std::string_view::npos) return "";
  return std::string(text.substr(begin, text.find_last_not_of(" \t\r\n") - begin + 1));
}

std::size_t take_head_line(char* bytes, std::size_t, std::size_t size, void* context) {
  auto& head = static_cast<Transfer*>(context)->head;
  const std::string_view line(bytes, size);
  if (line.starts_with("HTTP/")) {  // of the next answer, after a redirect
    head = {};
    return size;
  }
  const auto colon = line.find(':');
  if (colon == std::string_view::npos) return size;
  std::string name(line.substr(0, colon));
  std::transform(name.begin(), name.end(), name.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  head.fields[name] = trimmed(line.substr(colon + 1));
  return size;
}

int status_of(CURL* handle) {
  long status = 0;
  curl_easy_getinfo(handle, CURLINFO_RESPONSE_CODE, &status);
  return static_cast<int>(status);
}

// No exception may pass through libcurl, which is C.
std::size_t take_body(char* bytes, std::size_t, std::size_t size, void* context) {
  auto& transfer = *static_cast<Transfer*>(context);
  transfer.head.status = status_of(transfer.handle.get());
  if (transfer.head.status / 100 != 2) return size;
  try {
    const bool taken = transfer.request.on_body && transfer.request.on_body(transfer.head, {bytes, size});
    return taken ? size : CURL_WRITEFUNC_ERROR;
  } catch (...) {
    *transfer.thrown = std::current_exception();
    return CURL_WRITEFUNC_ERROR;
  }
}

HttpFailure failure_of(CURLcode code) {
  switch (code) {
    case CURLE_OK:
    case CURLE_HTTP_RETURNED_ERROR:
      return HttpFailure::none;
    case CURLE_COULDNT_RESOLVE_HOST:
    case CURLE_COULDNT_RESOLVE_PROXY:
      return HttpFailure::cannot_resolve;
    case CURLE_COULDNT_CONNECT:
      return HttpFailure::cannot_connect;
    case CURLE_SSL_CONNECT_ERROR:
      return HttpFailure::tls;
    case CURLE_PEER_FAILED_VERIFICATION:
    case CURLE_SSL_CACERT_BADFILE:
    case CURLE_SSL_ISSUER_ERROR:
      return HttpFailure::untrusted;
    case CURLE_PARTIAL_FILE:
    case CURLE_RECV_ERROR:
    case CURLE_SEND_ERROR:
    case CURLE_GOT_NOTHING:
    case CURLE_OPERATION_TIMEDOUT:
    case CURLE_WEIRD_SERVER_REPLY:
      return HttpFailure::cut;
    case CURLE_WRITE_ERROR:
      return HttpFailure::refused;
    default:
      return HttpFailure::other;
  }
}

HttpResult result_of(Transfer& transfer, CURLcode code) {
  CURL* handle = transfer.handle.get();
  HttpResult result;
  transfer.head.status = status_of(handle);
  result.head = std::move(transfer.head);
  result.failure = failure_of(code);
  result.detail = transfer.error[0] ? trimmed(transfer.error) : curl_easy_strerror(code);
  const char* url = nullptr;
  curl_easy_getinfo(handle, CURLINFO_EFFECTIVE_URL, &url);
  result.host = host_of(url ? url : transfer.request.url);
  curl_off_t seconds = 0;
  curl_easy_getinfo(handle, CURLINFO_RETRY_AFTER, &seconds);
  if (seconds > 0) result.retry_after = std::chrono::seconds(seconds);
  return result;
}

void set(CURLcode code) {
  if (code != CURLE_OK) throw std::runtime_error(fmt::format("libcurl: {}", curl_easy_strerror(code)));
}

void start_libcurl() {
  static const CURLcode started = curl_global_init(CURL_GLOBAL_DEFAULT);
  set(started);
}

void configure(Transfer& transfer, const HttpOptions& options) {
  CURL* handle = transfer.handle.get();
  const HttpRequest& request = transfer.request;
  // A server reached through TLS cannot lead us away from it.
  const char* protocols = request.url.starts_with("https:") ? "https" : "http,https";
  set(curl_easy_setopt(handle, CURLOPT_URL, request.url.c_str()));
  set(curl_easy_setopt(handle, CURLOPT_PROTOCOLS_STR, "http,https"));
  set(curl_easy_setopt(handle, CURLOPT_REDIR_PROTOCOLS_STR, protocols));
  set(curl_easy_setopt(handle, CURLOPT_FOLLOWLOCATION, request.head_only ? 0L : 1L));
  set(curl_easy_setopt(handle, CURLOPT_MAXREDIRS, static_cast<long>(limits::hub_redirects)));
  set(curl_easy_setopt(handle, CURLOPT_NOBODY, request.head_only ? 1L : 0L));
  set(curl_easy_setopt(handle, CURLOPT_FAILONERROR, 1L));
  set(curl_easy_setopt(handle, CURLOPT_NOSIGNAL, 1L));
  set(curl_easy_setopt(handle, CURLOPT_USERAGENT, "tandem"));
  // A connection for each file: several together are faster than one where each is held back.
  set(curl_easy_setopt(handle, CURLOPT_HTTP_VERSION, static_cast<long>(CURL_HTTP_VERSION_1_1)));
  set(curl_easy_setopt(handle, CURLOPT_BUFFERSIZE, 512L << 10));
  set(curl_easy_setopt(handle, CURLOPT_CONNECTTIMEOUT, static_cast<long>(limits::hub_connect.count())));
  set(curl_easy_setopt(handle, CURLOPT_LOW_SPEED_LIMIT, 1L));
  set(curl_easy_setopt(handle, CURLOPT_LOW_SPEED_TIME, static_cast<long>(limits::hub_silence.count())));
  set(curl_easy_setopt(handle, CURLOPT_ERRORBUFFER, transfer.error));
  set(curl_easy_setopt(handle, CURLOPT_PRIVATE, &transfer));
  set(curl_easy_setopt(handle, CURLOPT_HEADERFUNCTION, take_head_line));
  set(curl_easy_setopt(handle, CURLOPT_HEADERDATA, &transfer));
  set(curl_easy_setopt(handle, CURLOPT_WRITEFUNCTION, take_body));
  set(curl_easy_setopt(handle, CURLOPT_WRITEDATA, &transfer));
  if (request.offset > 0) {
    set(curl_easy_setopt(handle, CURLOPT_RANGE, fmt::format("{}-", request.offset).c_str()));
  }
  if (!options.token.empty()) {  // without CURLOPT_UNRESTRICTED_AUTH it stays with the first host and port
    set(curl_easy_setopt(handle, CURLOPT_HTTPAUTH, CURLAUTH_BEARER));
    set(curl_easy_setopt(handle, CURLOPT_XOAUTH2_BEARER, options.token.c_str()));
  }
  if (!options.ca_file.empty()) {
    set(curl_easy_setopt(handle, CURLOPT_CAINFO, options.ca_file.c_str()));
  }
}

}  // namespace

std::string HttpHead::field(const std::string& name) const {
  const auto found = fields.find(name);
  return found == fields.end() ? "" : found->second;
}

std::string host_of(const std::string& url) {
  const auto scheme = url.find("://");
  const auto begin = scheme == std::string::npos ? 0 : scheme + 3;
  return url.substr(begin, url.find_first_of("/?#", begin) - begin);
}

struct HttpClient::Impl {
  HttpOptions options;
  std::unique_ptr<CURLM, decltype(&curl_multi_cleanup)> multi{nullptr, curl_multi_cleanup};
  std::vector<std::unique_ptr<Transfer>> transfers;
  std::exception_ptr thrown;  // by a callback

  // Takes the transfer out of the list and tells its end.
  void end(CURL* handle, CURLcode code) {
    const auto found = std::find_if(transfers.begin(), transfers.end(),
                                    [&](const auto& transfer) { return transfer->handle.get() == handle; });
    const auto transfer = std::move(*found);
    transfers.erase(found);
    curl_multi_remove_handle(multi.get(), handle);
    const auto result = result_of(*transfer, code);
    if (!thrown && transfer->request.on_end) transfer->request.on_end(result);
  }
};

HttpClient::HttpClient(HttpOptions options) : impl_(std::make_unique<Impl>()) {
  start_libcurl();
  impl_->options = std::move(options);
  impl_->multi.reset(curl_multi_init());
  if (!impl_->multi) throw std::runtime_error("libcurl cannot start");
}

HttpClient::~HttpClient() {
  for (const auto& transfer : impl_->transfers) {
    curl_multi_remove_handle(impl_->multi.get(), transfer->handle.get());
  }
}

void HttpClient::start(HttpRequest request) {
  auto transfer = std::make_unique<Transfer>();
  transfer->request = std::move(request);
  transfer->thrown = &impl_->thrown;
  transfer->handle.reset(curl_easy_init());
  if (!transfer->handle) throw std::runtime_error("libcurl cannot make a request");
  configure(*transfer, impl_->options);
  curl_multi_add_handle(impl_->multi.get(), transfer->handle.get());
  impl_->transfers.push_back(std::move(transfer));
}

void HttpClient::poll(std::chrono::milliseconds timeout) {
  int running = 0;
  curl_multi_poll(impl_->multi.get(), nullptr, 0, static_cast<int>(timeout.count()), nullptr);
  curl_multi_perform(impl_->multi.get(), &running);
  int left = 0;
  while (const CURLMsg* message = curl_multi_info_read(impl_->multi.get(), &left)) {
    if (message->msg == CURLMSG_DONE) impl_->end(message->easy_handle, message->data.result);
  }
  if (impl_->thrown) std::rethrow_exception(std::exchange(impl_->thrown, nullptr));
}

}  // namespace tandem::weights
