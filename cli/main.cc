#include <cstdio>

#include "base/log.h"

int main() {
  flywheel::init_logging();
  std::puts("flywheel");
  return 0;
}
