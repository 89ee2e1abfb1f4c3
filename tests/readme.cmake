# The code blocks of README.md and examples/README.md, compiled and run: each file is one program (see readme/extract.cpp).

add_executable(readme_extract readme/extract.cpp)
target_link_libraries(readme_extract PRIVATE orrery_development)
target_compile_features(readme_extract PRIVATE cxx_std_20)
target_compile_options(readme_extract PRIVATE -O0)

set(wrappers ${CMAKE_CURRENT_SOURCE_DIR}/readme/wrappers)
file(GLOB wrapper_files CONFIGURE_DEPENDS ${wrappers}/*.cpp.in)
foreach(document README examples/README)
  string(REPLACE / _ name ${document})
  set(source ${CMAKE_CURRENT_BINARY_DIR}/readme/${name}.cpp)
  file(MAKE_DIRECTORY ${CMAKE_CURRENT_BINARY_DIR}/readme)
  add_custom_command(
    OUTPUT ${source}
    COMMAND readme_extract ${PROJECT_SOURCE_DIR}/${document}.md ${wrappers} ${source}
    DEPENDS readme_extract ${PROJECT_SOURCE_DIR}/${document}.md ${wrapper_files}
    VERBATIM)
  add_executable(test_${name} ${source})
  target_include_directories(test_${name} PRIVATE ${CMAKE_CURRENT_SOURCE_DIR})
  target_link_libraries(test_${name} PRIVATE orrery::orrery)
  # What users turn on; the library's own warnings would ask for casts that readers need not see.
  target_compile_options(test_${name} PRIVATE -Wall -Wextra -Werror -O0)
  add_dependencies(unit_tests test_${name})
  add_test(NAME readme.${name} COMMAND test_${name} WORKING_DIRECTORY ${CMAKE_CURRENT_BINARY_DIR}/readme)
  set_tests_properties(readme.${name} PROPERTIES LABELS unit PROCESSORS 2 TIMEOUT 300)
endforeach()

# What the first program prints.
set_tests_properties(readme.README PROPERTIES PASS_REGULAR_EXPRESSION "first output: 0\\.2.*all blocks passed")

# Languages of code blocks, links, and the length of the first page.
file(GLOB documents CONFIGURE_DEPENDS RELATIVE ${PROJECT_SOURCE_DIR} ${PROJECT_SOURCE_DIR}/*.md ${PROJECT_SOURCE_DIR}/examples/*.md
     ${PROJECT_SOURCE_DIR}/bench/*.md ${PROJECT_SOURCE_DIR}/bench/cluster/*.md)
foreach(document IN LISTS documents)
  set(most_lines)
  if(document STREQUAL "README.md")
    set(most_lines 250)
  endif()
  add_test(NAME readme.links:${document} COMMAND readme_extract --check ${PROJECT_SOURCE_DIR}/${document} ${most_lines})
  set_tests_properties(readme.links:${document} PROPERTIES LABELS unit FAIL_REGULAR_EXPRESSION "README.md: 0 links")
endforeach()
add_dependencies(unit_tests readme_extract)

# The pictures are those that the program draws.
if(TARGET pictures)
  add_test(NAME readme.pictures COMMAND pictures --check ${PROJECT_SOURCE_DIR}/examples/pictures)
endif()
