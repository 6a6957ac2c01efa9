# Installs the libraries, headers and command line, and a package for find_package(croquis).
include(CMakePackageConfigHelpers)
get_property(modules GLOBAL PROPERTY CROQUIS_MODULES)
install(TARGETS ${modules} EXPORT croquisTargets ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR}
        FILE_SET HEADERS DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
