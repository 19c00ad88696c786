// Logging to stderr: LOG_INFO("step {} loss {:.4f}", step, loss). Results go to stdout, never through here.
//
// Levels from FLYWHEEL_LOG or --log-level (trace, debug, info, warn, error). Secrets: wrap them in
// redacted() or do not pass them.
#pragma once

#include <spdlog/spdlog.h>

#include <string>

#define LOG_TRACE(...) SPDLOG_LOGGER_CALL(::spdlog::default_logger_raw(), ::spdlog::level::trace, __VA_ARGS__)
#define LOG_DEBUG(...) SPDLOG_LOGGER_CALL(::spdlog::default_logger_raw(), ::spdlog::level::debug, __VA_ARGS__)
#define LOG_INFO(...) SPDLOG_LOGGER_CALL(::spdlog::default_logger_raw(), ::spdlog::level::info, __VA_ARGS__)
#define LOG_WARN(...) SPDLOG_LOGGER_CALL(::spdlog::default_logger_raw(), ::spdlog::level::warn, __VA_ARGS__)
#define LOG_ERROR(...) SPDLOG_LOGGER_CALL(::spdlog::default_logger_raw(), ::spdlog::level::err, __VA_ARGS__)

namespace flywheel {

// Call once, first in main. `who` stands in each line (for workers: "w3"). Unknown level: UserError.
void init_logging(const std::string& level = "", const std::string& who = "");

// "sk-a…(32)": enough to recognise a secret, not to use it.
std::string redacted(const std::string& secret);

}  // namespace flywheel
