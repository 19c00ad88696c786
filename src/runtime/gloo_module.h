// The border between us and Gloo: a table of plain C functions, found in a module that is loaded at run time.
//
// libtorch carries a Gloo of another version and exports its symbols, so a program that links both would mix
// the two. Here only flywheel_runtime_gloo_module.so links Debian's libgloo; it is loaded with RTLD_LOCAL and
// RTLD_DEEPBIND, so that it sees its own Gloo first and nobody else sees it at all. Nothing that Gloo or the
// C++ library allocates, throws or defines crosses this border.
//
// A member sends and receives between all pairs of ranks; what to compute is gloo_transport.cc's matter.
// Threads: exchange() from several threads with different slots; abort() from any; the rest from one.
#pragma once

#include <cstddef>
#include <cstdint>

extern "C" {

struct FlywheelGlooMember;    // one rank's connections
struct FlywheelGlooExchange;  // messages under way

struct FlywheelGlooMessage {
  int rank;       // to or from
  void* data;     // not written to where it is sent
  int64_t bytes;  // both sides say the same
};

enum FlywheelGlooOutcome { kGlooDone = 0, kGlooTimeout = 1, kGlooFailed = 2 };

struct FlywheelGlooText {
  char text[400];  // what went wrong
};

struct FlywheelGlooTable {
  int version;  // kFlywheelGlooVersion

  // Binds to `host` (a name or an IP address of this machine). null: see error.
  FlywheelGlooMember* (*open)(int rank, int size, const char* host, FlywheelGlooText* error);
  // Where the peers reach this member.
  const char* (*address)(FlywheelGlooMember*, size_t* bytes);
  // `addresses`: of all ranks, `bytes` long each.
  int (*connect)(FlywheelGlooMember*, const char* const* addresses, const size_t* bytes, int64_t timeout_ms,
                 FlywheelGlooText* error);
  // Messages meet by (rank, slot); one that nobody sends is waited for until time is up. slot < 2^63.
  FlywheelGlooExchange* (*begin)(FlywheelGlooMember*, const FlywheelGlooMessage* sends, int send_count,
                                 const FlywheelGlooMessage* recvs, int recv_count, uint64_t slot,
                                 FlywheelGlooText* error);
  // Frees the exchange, whatever the outcome; the memory of its messages is the caller's again.
  int (*wait)(FlywheelGlooMember*, FlywheelGlooExchange*, int64_t timeout_ms, FlywheelGlooText* error);
  // Ends all exchanges here and tells the peers, which do the same.
  void (*abort)(FlywheelGlooMember*, const char* why);
  int (*aborted)(FlywheelGlooMember*, FlywheelGlooText* why);
  // Says goodbye to the peers, so that they do not take it for a death.
  void (*close)(FlywheelGlooMember*);
};

constexpr int kFlywheelGlooVersion = 1;

// The module's only symbol.
__attribute__((visibility("default"))) const FlywheelGlooTable* flywheel_gloo_table();
}
