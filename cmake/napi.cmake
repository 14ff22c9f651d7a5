# Node-API headers: cmake-js names them; otherwise they lie in node_modules. Nothing is downloaded.
if(CMAKE_JS_INC)
  set(FLASH_GQA_NAPI_INCLUDES ${CMAKE_JS_INC})
else()
  find_path(FLASH_GQA_NODE_API_HEADERS node_api.h NO_DEFAULT_PATH
    PATHS "${CMAKE_SOURCE_DIR}/node_modules/node-api-headers/include"
          "${CMAKE_SOURCE_DIR}/../node-api-headers/include")
  find_path(FLASH_GQA_NODE_ADDON_API napi.h NO_DEFAULT_PATH
    PATHS "${CMAKE_SOURCE_DIR}/node_modules/node-addon-api"
          "${CMAKE_SOURCE_DIR}/../node-addon-api")
  if(NOT FLASH_GQA_NODE_API_HEADERS OR NOT FLASH_GQA_NODE_ADDON_API)
    message(FATAL_ERROR "flash-gqa: no Node-API headers: run npm ci, or "
                        "npm install node-api-headers node-addon-api")
  endif()
  set(FLASH_GQA_NAPI_INCLUDES ${FLASH_GQA_NODE_API_HEADERS} ${FLASH_GQA_NODE_ADDON_API})
endif()
