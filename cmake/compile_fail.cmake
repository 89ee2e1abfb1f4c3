# cmake -D COMPILER=… -D INCLUDE=… -D SOURCE=… -P compile_fail.cmake
#
# A program that must not compile, and the message the compiler must say. Each `// EXPECT: regex` line of SOURCE has to
# match what the compiler prints; with ORRERY_CONTROL defined, the corrected program has to compile, so that the
# refusal is about the one thing that differs. A line `// FLAGS: …` gives flags that the corrected program is compiled
# without; a line `// ERRORS: n` says how many errors the compiler must print in all.
set(compile ${COMPILER} -std=c++20 -fsyntax-only -fmessage-length=0 -I ${INCLUDE} ${SOURCE})

file(STRINGS ${SOURCE} expectations REGEX "^// EXPECT: ")
if(NOT expectations)
  message(FATAL_ERROR "${SOURCE} expects nothing: add a line `// EXPECT: regex`.")
endif()
file(STRINGS ${SOURCE} flags REGEX "^// FLAGS: ")
list(TRANSFORM flags REPLACE "^// FLAGS: " "")
separate_arguments(flags UNIX_COMMAND "${flags}")
file(STRINGS ${SOURCE} errors REGEX "^// ERRORS: ")

execute_process(COMMAND ${compile} -DORRERY_CONTROL RESULT_VARIABLE result ERROR_VARIABLE output)
if(NOT result EQUAL 0)
  message("${output}")
  message(FATAL_ERROR "The corrected program (ORRERY_CONTROL) should compile.")
endif()

execute_process(COMMAND ${compile} ${flags} RESULT_VARIABLE result ERROR_VARIABLE output)
if(result EQUAL 0)
  message(FATAL_ERROR "This compiles, but should be refused.")
endif()
foreach(expectation IN LISTS expectations)
  string(REGEX REPLACE "^// EXPECT: " "" expectation "${expectation}")
  if(NOT output MATCHES "${expectation}")
    message("${output}")
    message(FATAL_ERROR "Refused, but without the message \"${expectation}\".")
  endif()
endforeach()
if(errors)
  string(REGEX REPLACE "^// ERRORS: " "" errors "${errors}")
  string(REGEX MATCHALL "error: " printed "${output}")
  list(LENGTH printed printed)
  if(NOT printed EQUAL errors)
    message("${output}")
    message(FATAL_ERROR "Refused with ${printed} errors instead of ${errors}.")
  endif()
endif()
