// The one place where environment variables are read. Every variable that changes what Flywheel does is a
// function here; config files and flags are the interface, these are for machines and tests.
#pragma once

#include <string>

namespace flywheel::env {

std::string home();       // FLYWHEEL_HOME, default ~/.flywheel; absolute. UserError without HOME
std::string store();      // FLYWHEEL_STORE: postgres:// address for names and runs; "" = a file in home()
std::string log_level();  // FLYWHEEL_LOG, default "info"
std::string test_data();  // FLYWHEEL_TEST_DATA, default ../shared/data from the project's root; "" if absent
std::string isa_limit();  // FLYWHEEL_ISA: baseline, avx2 or avx512; caps what kernels use. Default: no cap
std::string hub_url();    // HF_ENDPOINT, default https://huggingface.co; names are Hugging Face's own
std::string hub_token();  // HF_TOKEN: for models that are not public
bool no_color();          // NO_COLOR (https://no-color.org)
// Any other variable by name (launchers read the cluster manager's). Empty when unset.
std::string get(const char* name);
// The same for a key that a request carries: without white space at its ends, which files and pipes leave
// there. UserError, without the value, for one with control characters.
std::string secret(const char* name);

}  // namespace flywheel::env
