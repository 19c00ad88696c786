// What `make setup` put on this machine for the demo: documentation to learn from, and SmolLM2's weights.
// Errors: none; what is not there is an empty answer. Threads: any.
#pragma once

#include <string>
#include <vector>

namespace flywheel::cli {

// The HTML folders of PostgreSQL's, Python's and Debian's documentation packages, whatever their version;
// each once (some are links to others), in order of their paths.
std::vector<std::string> documentation_folders();

// The command that installs them: these names stand for the version that the distribution has.
inline constexpr const char* kInstallDocumentation =
    "`make setup` installs it, or: apt install postgresql-doc python3-doc debian-reference-en";

// What runs pip: .venv's Python where there is one, for what is installed there need not be downloaded; else
// the system's.
std::string venv_python();

// SmolLM2's GGUF in .venv; "" where it is not.
std::string smollm2_file();

}  // namespace flywheel::cli
