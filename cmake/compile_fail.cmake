# cmake -D COMPILER=… -D INCLUDE=… -D SOURCE=… -P compile_fail.cmake
#
# A program that must not compile, and the message the compiler must say. Each `// EXPECT: regex` line of SOURCE has to
# match what the compiler prints, and no `// REJECT: regex` line; with ORRERY_CONTROL defined, the corrected program has to compile, so that the
# refusal is about the one thing that differs.
set(compile ${COMPILER} -std=c++20 -fsyntax-only -fmessage-length=0 -I ${INCLUDE} ${SOURCE})

file(STRINGS ${SOURCE} expectations REGEX "^// EXPECT: ")
file(STRINGS ${SOURCE} rejections REGEX "^// REJECT: ")
file(STRINGS ${SOURCE} unread REGEX "([^/ ].*|// .+)(EXPECT|REJECT): ")
if(unread)
  message(FATAL_ERROR "${SOURCE} has an expectation that is not at the beginning of its line: ${unread}")
endif()
if(NOT expectations)
  message(FATAL_ERROR "${SOURCE} expects nothing: add a line `// EXPECT: regex`.")
endif()

execute_process(COMMAND ${compile} -DORRERY_CONTROL RESULT_VARIABLE result ERROR_VARIABLE output)
if(NOT result EQUAL 0)
  message("${output}")
  message(FATAL_ERROR "The corrected program (ORRERY_CONTROL) should compile.")
endif()

execute_process(COMMAND ${compile} RESULT_VARIABLE result ERROR_VARIABLE output)
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
foreach(rejection IN LISTS rejections)
  string(REGEX REPLACE "^// REJECT: " "" rejection "${rejection}")
  if(output MATCHES "${rejection}")
    message("${output}")
    message(FATAL_ERROR "Refused, but with the misleading \"${rejection}\".")
  endif()
endforeach()
