#include "apps/cli.h"

int main(int argc, char** argv) { return croquis::apps::Main(argc, argv); }
