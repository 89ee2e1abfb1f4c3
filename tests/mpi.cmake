# Tests whose ranks are processes: each source of transport/mpi is an executable, run on several numbers of ranks; ctest names them
# mpi.<source>.<ranks>.

add_library(mpi_test_main OBJECT transport/mpi/main.cpp)
target_link_libraries(mpi_test_main PUBLIC test_flash orrery::mpi doctest::doctest)
target_compile_options(mpi_test_main PUBLIC ${optimisation})
target_precompile_headers(mpi_test_main PRIVATE ${precompiled} <mpi.h>)

add_custom_target(mpi_tests)

# OpenMPI wants to be told that it may run as root, and with more ranks than cores; other libraries do not read this.
set(environment
    "OMPI_ALLOW_RUN_AS_ROOT=1;OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1;OMPI_MCA_rmaps_base_oversubscribe=1;\
OMPI_MCA_mpi_yield_when_idle=1;PRTE_MCA_rmaps_default_mapping_policy=:oversubscribe")

# A test mpi.<name>.<ranks> that runs a command on so many processes.
function(add_mpi_run name ranks command)
  add_test(NAME mpi.${name}.${ranks} COMMAND ${MPIEXEC_EXECUTABLE} ${MPIEXEC_NUMPROC_FLAG} ${ranks} ${MPIEXEC_PREFLAGS}
                                             ${command} ${MPIEXEC_POSTFLAGS} ${ARGN})
  set_tests_properties(
    mpi.${name}.${ranks}
    PROPERTIES LABELS mpi
               PROCESSORS 2
               TIMEOUT 300
               FAIL_REGULAR_EXPRESSION "test cases: +0 "
               ENVIRONMENT "${environment}")
endfunction()

function(add_mpi_test name)
  add_executable(test_mpi_${name} transport/mpi/${name}.cpp)
  target_link_libraries(test_mpi_${name} PRIVATE mpi_test_main)
  target_precompile_headers(test_mpi_${name} REUSE_FROM mpi_test_main)
  add_dependencies(mpi_tests test_mpi_${name})
  foreach(ranks IN LISTS ARGN)
    add_mpi_run(${name} ${ranks} $<TARGET_FILE:test_mpi_${name}>)
  endforeach()
endfunction()

add_mpi_test(conformance 1 2 3 4 7 8)
add_mpi_test(world 1 2 3 4 7 8)
add_mpi_run(world_funneled 4 $<TARGET_FILE:test_mpi_world> --thread-level=funneled)
add_mpi_run(world_serialized 4 $<TARGET_FILE:test_mpi_world> --thread-level=serialized)
add_mpi_test(failures 1 2 3 4)
add_mpi_test(overlap 2)
if(TARGET train_mpi) # fails if a loss curve is not that of one thread
  add_mpi_run(train 4 $<TARGET_FILE:train_mpi> --steps 4 --length 96 --layers 1 --width 64)
endif()

# Starts its ranks itself, to kill some.
add_executable(test_mpi_killed transport/mpi/killed.cpp)
target_link_libraries(test_mpi_killed PRIVATE test_flash orrery::mpi)
target_compile_options(test_mpi_killed PRIVATE ${optimisation})
add_dependencies(mpi_tests test_mpi_killed)
add_test(NAME mpi.killed COMMAND test_mpi_killed ${MPIEXEC_EXECUTABLE} ${MPIEXEC_NUMPROC_FLAG})
set_tests_properties(mpi.killed PROPERTIES LABELS mpi PROCESSORS 2 TIMEOUT 300 ENVIRONMENT "${environment}")

add_mpi_run(static 2 $<TARGET_FILE:test_mpi_killed> --static)

# Random calls, for a few seconds.
add_executable(test_mpi_soak transport/mpi/soak.cpp)
target_link_libraries(test_mpi_soak PRIVATE test_flash orrery::mpi)
target_compile_options(test_mpi_soak PRIVATE ${optimisation})
add_dependencies(mpi_tests test_mpi_soak)
add_test(NAME mpi.soak COMMAND ${MPIEXEC_EXECUTABLE} ${MPIEXEC_NUMPROC_FLAG} 6 ${MPIEXEC_PREFLAGS}
                               $<TARGET_FILE:test_mpi_soak> ${MPIEXEC_POSTFLAGS} --calls 400 --seconds 4)
set_tests_properties(mpi.soak PROPERTIES LABELS mpi PROCESSORS 2 TIMEOUT 300 ENVIRONMENT "${environment}")
add_test(NAME mpi.soak.long COMMAND ${MPIEXEC_EXECUTABLE} ${MPIEXEC_NUMPROC_FLAG} 6 ${MPIEXEC_PREFLAGS}
                                    $<TARGET_FILE:test_mpi_soak> ${MPIEXEC_POSTFLAGS} ${long_soak}
         CONFIGURATIONS Long)
set_tests_properties(mpi.soak.long PROPERTIES LABELS long PROCESSORS 2 TIMEOUT 900 ENVIRONMENT "${environment}")

# Consumers: one that finds the installed package's component, one that embeds the sources and asks for MPI.
foreach(way mpi fetch_content)
  add_test(
    NAME package.${way}
    COMMAND
      ${CMAKE_CTEST_COMMAND} --build-and-test package/${way} ${CMAKE_CURRENT_BINARY_DIR}/package/${way} #
      --build-generator ${CMAKE_GENERATOR} --build-makeprogram ${CMAKE_MAKE_PROGRAM} --build-options
      -DCMAKE_CXX_COMPILER=${CMAKE_CXX_COMPILER} -DCMAKE_PREFIX_PATH=${prefix} --test-command consumer
    WORKING_DIRECTORY ${CMAKE_CURRENT_SOURCE_DIR})
endforeach()
set_tests_properties(package.mpi PROPERTIES FIXTURES_REQUIRED installed_package)
