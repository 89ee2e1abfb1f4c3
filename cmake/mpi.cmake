# What orrery::mpi is, here and in the installed package: the headers and MPI, without MPI's old C++ bindings.
function(orrery_use_mpi target)
  target_link_libraries(${target} INTERFACE orrery::orrery MPI::MPI_CXX)
  target_compile_definitions(${target} INTERFACE OMPI_SKIP_MPICXX MPICH_SKIP_MPICXX)
endfunction()
