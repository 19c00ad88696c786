#include "cli.h"

#include <algorithm>
#include <cstdio>

#include "base/config.h"

namespace flywheel::cli {

std::vector<Verb>& verbs() {
  static std::vector<Verb> all;
  return all;
}

namespace {

// "--lrr": the option names that the user could have meant, of the app and the subcommands in use.
std::string nearest_option(const CLI::App& app, const std::string& given) {
  std::vector<std::string> known;
  std::vector<const CLI::App*> apps{&app};
  for (const CLI::App* used : app.get_subcommands()) apps.push_back(used);
  for (const CLI::App* one : apps) {
    for (const CLI::Option* option : one->get_options()) {
      for (const auto& name : option->get_lnames()) known.push_back("--" + name);
    }
    for (const CLI::App* sub : one->get_subcommands([](const CLI::App*) { return true; })) {
      known.push_back(sub->get_name());
    }
  }
  return nearest_name(given.substr(0, given.find('=')), known);
}

}  // namespace

std::optional<int> parse(CLI::App& app, const std::string& name, const std::vector<std::string>& args) {
  app.name("flywheel " + name);
  if (!app.get_footer().empty()) app.footer("Examples:\n" + app.get_footer());
  std::vector<std::string> reversed(args.rbegin(), args.rend());  // CLI11 wants the last first
  try {
    app.parse(reversed);
    return std::nullopt;
  } catch (const CLI::Success& help) {  // --help of the verb or of a subcommand
    return app.exit(help);
  } catch (const CLI::ParseError& error) {
    std::string hint;
    for (const auto& arg : app.remaining(true)) {
      if (const std::string near = nearest_option(app, arg); !near.empty())
        hint = "; did you mean " + near + "?";
    }
    std::fprintf(stderr, "flywheel %s: %s%s\nSee flywheel %s --help\n", name.c_str(), error.what(),
                 hint.c_str(), name.c_str());
    return 2;
  }
}

}  // namespace flywheel::cli
