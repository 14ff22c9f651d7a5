{
  # For node-gyp rebuild and electron-rebuild in a git checkout; kept out of the published package, because npm and yarn
  # would otherwise run node-gyp on installation.
  "targets": [
    {
      "target_name": "flash_gqa",
      "type": "none",
      "actions": [
        {
          "action_name": "build",
          "inputs": ["CMakeLists.txt"],
          "outputs": ["build/Release/flash_gqa.node"],
          "action": ["node", "scripts/compile.js", "--addon"]
        }
      ]
    }
  ]
}
