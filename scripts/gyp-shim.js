#!/usr/bin/env node
// Stands in for node-gyp under prebuildify, which takes the one .node in build/Release:
// `rebuild --target=…` becomes our build. Needs no Python, no make and no Node headers.

const { buildNative } = require("./native.js");

buildNative();
