# orrery_add_compiled(): makes orrery::compiled, a static library of what operators are made of, for projects whose
# source files take too long to compile. It is built when something links it, with this project's flags. See
# orrery/compiled.hpp.
function(orrery_add_compiled)
  set(sources "")
  foreach(part 1 2 3 4)
    set(source ${CMAKE_CURRENT_BINARY_DIR}/orrery_compiled/part_${part}.cpp)
    file(CONFIGURE OUTPUT ${source} CONTENT
         "#define ORRERY_IMPLEMENTATION\n#define ORRERY_IMPLEMENTATION_PART ${part}\n#include <orrery/orrery.hpp>\n")
    list(APPEND sources ${source})
  endforeach()
  add_library(orrery_compiled STATIC EXCLUDE_FROM_ALL ${sources})
  add_library(orrery::compiled ALIAS orrery_compiled)
  target_link_libraries(orrery_compiled PUBLIC orrery::orrery)
  target_compile_definitions(orrery_compiled PUBLIC ORRERY_COMPILED)
endfunction()
