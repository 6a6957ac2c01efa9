# Installs the libraries, the command line with its bundled model, and a package for find_package(croquis).
include(CMakePackageConfigHelpers)
get_property(modules GLOBAL PROPERTY CROQUIS_MODULES)
add_library(croquis_all INTERFACE)
add_library(croquis::croquis ALIAS croquis_all)
set_target_properties(croquis_all PROPERTIES EXPORT_NAME croquis)
target_link_libraries(croquis_all INTERFACE ${modules})

set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/croquis)
install(TARGETS ${modules} croquis_all EXPORT croquisTargets
        ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR}
        FILE_SET HEADERS DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(EXPORT croquisTargets NAMESPACE croquis:: DESTINATION ${package_dir})
configure_package_config_file(cmake/croquisConfig.cmake.in ${PROJECT_BINARY_DIR}/croquisConfig.cmake
                              INSTALL_DESTINATION ${package_dir})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/croquisConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/croquisConfig.cmake ${PROJECT_BINARY_DIR}/croquisConfigVersion.cmake
        DESTINATION ${package_dir})
install(DIRECTORY models/ DESTINATION ${CMAKE_INSTALL_DATADIR}/croquis/models)
