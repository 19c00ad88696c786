// What a program and its seats (seats.h, seat.h) say to each other: one byte of type and an encoded struct
// (wire.h), over one connection that a seat makes.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "runtime/wire.h"

namespace flywheel::runtime {

constexpr uint32_t kSeatProtocolVersion = 1;

enum class SeatMessage : char {
  kTake = 1,  // seat -> program: TakeSeat
  kWelcome,   // program -> seat
  kRefused,   // program -> seat: the reason, as text
  kBeat,      // both ways
  kStart,     // program -> seat: StartAtSeat
  kKill,      // program -> seat: the id
  kEnded,     // seat -> program: EndedAtSeat
  kEnd,       // program -> seat: the exit code for it
  kLeft,      // seat -> program: heard that
};

struct TakeSeat {
  uint32_t version = kSeatProtocolVersion;
  int seat = 0, seats = 0;
  std::string host, address;
  template <typename V>
  void fields(V& v) {
    v(version), v(seat), v(seats), v(host), v(address);
  }
};

struct StartAtSeat {
  uint64_t id = 0;
  std::string name, log_folder;
  std::vector<std::string> env;  // NAME=VALUE
  template <typename V>
  void fields(V& v) {
    v(id), v(name), v(log_folder), v(env);
  }
};

struct EndedAtSeat {
  uint64_t id = 0;
  int exit_code = 0, signal = 0;
  std::string words;
  template <typename V>
  void fields(V& v) {
    v(id), v(exit_code), v(signal), v(words);
  }
};

template <typename T>
std::string seat_message(SeatMessage type, const T& body) {
  return static_cast<char>(type) + encode(body);
}
inline std::string seat_message(SeatMessage type) {
  return std::string(1, static_cast<char>(type));
}

}  // namespace flywheel::runtime
