# What `find_package(orrery)` finds: headers and seven small files, the same for every architecture.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

set(package ${CMAKE_INSTALL_DATADIR}/cmake/orrery)
write_basic_package_version_file(
  ${PROJECT_BINARY_DIR}/orrery-config-version.cmake COMPATIBILITY SameMajorVersion ARCH_INDEPENDENT)

install(TARGETS orrery EXPORT orrery-targets FILE_SET HEADERS)
install(EXPORT orrery-targets NAMESPACE orrery:: DESTINATION ${package})
install(FILES cmake/orrery-config.cmake cmake/compiled.cmake cmake/mpi.cmake cmake/cuda.cmake
              ${PROJECT_BINARY_DIR}/orrery-config-version.cmake DESTINATION ${package})
install(FILES LICENSE DESTINATION ${CMAKE_INSTALL_DOCDIR})
