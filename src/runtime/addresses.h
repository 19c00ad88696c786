// Addresses of hosts, looked up and tried before anything is started.
//
//   ASSIGN_OR_RETURN(const std::string ip, resolve_address("node7"));     // "10.0.0.7"
//   RETURN_IF_ERROR(check_can_listen(ip, 7400, 3));                       // 7400 to 7402 are free here
#pragma once

#include <string>

#include "base/result.h"

namespace flywheel::runtime {

// The IPv4 address of a host's name; an address itself stays as it is. kNotFound: nobody knows the name, or
// it has IPv6 addresses alone, which the transports do not speak.
Result<std::string> resolve_address(const std::string& name);

// That a program here may listen at this IPv4 address, on `count` ports from `port` on (0: any). kInvalid: it
// is not an address of this machine. kExists: the port is in use.
Result<void> check_can_listen(const std::string& address, int port = 0, int count = 1);

// The same for a run on several hosts. A machine's own name is often loopback on the machine itself (Debian's
// /etc/hosts: 127.0.1.1), where the others do not reach it: then network_address().
Result<std::string> resolve_for_others(const std::string& name);

// That it leads to this machine from this machine alone.
bool is_loopback(const std::string& address);

// What this machine calls itself; "?" where it has no name.
std::string host_name();

// The address of this machine from which it would talk to that IPv4 address: the one at which the other
// reaches it. kUnavailable: there is no way there.
Result<std::string> address_facing(const std::string& address);

// The first IPv4 address of this machine that is not loopback; without one 127.0.0.1.
std::string network_address();

}  // namespace flywheel::runtime
