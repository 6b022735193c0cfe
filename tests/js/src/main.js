// Usage: node main.js SCENARIO < options.json. Prints one JSON object: what the client saw.
import { readFileSync } from "node:fs";
import { scenarios } from "./scenarios.js";

const name = process.argv[2];
const seen = await scenarios[name](JSON.parse(readFileSync(0, "utf8")));
process.stdout.write(JSON.stringify(seen), () => process.exit(0)); // an open EventSource would keep node alive
