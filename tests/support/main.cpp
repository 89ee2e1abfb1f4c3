#define DOCTEST_CONFIG_IMPLEMENT  // also where the header has been precompiled without
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>
