# cmake -DNM=nm -DMODULE=x.so -DOUT=file -P kept_symbols.cmake
#
# Writes the linker's options for a program that loads MODULE: keep, and show to it, what it calls of the rooms.
execute_process(COMMAND ${NM} --dynamic --undefined-only --format=posix ${MODULE} OUTPUT_VARIABLE symbols
                COMMAND_ERROR_IS_FATAL ANY)
string(REGEX MATCHALL "_Z[A-Za-z0-9_]*8flywheel[A-Za-z0-9_]*" symbols "${symbols}")
list(REMOVE_DUPLICATES symbols)
set(options "")
foreach(symbol ${symbols})
  string(APPEND options "--undefined=${symbol}\n--export-dynamic-symbol=${symbol}\n")
endforeach()
file(CONFIGURE OUTPUT ${OUT} CONTENT "${options}" @ONLY)  # touched only where it changes
