# What ends each program here: a check that its output was written.
add_library(orrery_checked_output OBJECT EXCLUDE_FROM_ALL ${PROJECT_SOURCE_DIR}/examples/shared/checked_output.cpp)
target_compile_features(orrery_checked_output PRIVATE cxx_std_20)
target_link_libraries(orrery_checked_output PRIVATE orrery_development)

# A program of the source, over the transports that it includes; left out where one of them needs what is not there.
function(orrery_add_program target source)
  set(transports orrery::orrery)
  if(source MATCHES "\\.cu$")
    list(APPEND transports orrery::cuda)
  endif()
  file(STRINGS ${source} includes REGEX "#include [<\"]orrery/transport/(mpi|device|device_graph|nccl).hpp[>\"]")
  foreach(include IN LISTS includes)
    string(REGEX REPLACE ".*transport/(mpi|device|nccl).*" "\\1" transport ${include})
    string(REPLACE device cuda transport ${transport})
    list(APPEND transports orrery::${transport})
    if(NOT TARGET orrery::${transport})
      return()
    endif()
  endforeach()
  add_executable(${target} ${source})
  target_link_libraries(${target} PRIVATE ${transports} orrery_development orrery_checked_output)
endfunction()

# A test that the program, with these arguments, ends with an error and says so where its output cannot be written.
# Linux has a device for that.
function(orrery_test_output target)
  if(NOT TARGET ${target} OR NOT EXISTS /dev/full)
    return()
  endif()
  set(run "said=$(\"$0\" \"$@\" 2>&1 >/dev/full) && exit 1; echo \"$said\"")
  add_test(NAME output.${target} COMMAND sh -c "${run}" $<TARGET_FILE:${target}> ${ARGN})
  set_tests_properties(output.${target} PROPERTIES PASS_REGULAR_EXPRESSION "the output could not be written")
endfunction()
