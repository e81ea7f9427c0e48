// onnxruntime-web: networks are opened here and run one at a time; between two of them the page
// answers to its user.
import * as ort from "./ort.wasm.bundle.min.mjs";

ort.env.wasm.numThreads = 1; // threads would need headers that a plain server does not send
ort.env.logLevel = "error";
let running = Promise.resolve();

export const tensor = (data, shape) => (
  new ort.Tensor(data instanceof Uint8Array ? "uint8" : "float32", data, shape));

// In ms; until the browser has done what else waits.
export const pause = (time = 0) => new Promise((resume) => { setTimeout(resume, time); });

// What `parse` makes of a file of this folder; what goes wrong with it names the file.
export async function read(name, parse) {
  try {
    const answer = await fetch(name);
    if (!answer.ok) throw new Error(`the server answers ${answer.status}`);
    return await parse(answer);
  } catch (error) {
    throw new Error(`${name}: ${error.message}`);
  }
}

// An ONNX file of this folder as a function from tensors to data, both by name.
export async function open(name) {
  const session = await read(name, async (answer) => ort.InferenceSession.create(
    new Uint8Array(await answer.arrayBuffer()), { executionProviders: ["wasm"] }));
  return (inputs) => {
    const outputs = running.then(() => pause()).then(() => session.run(inputs));
    running = outputs.catch(() => {});
    return outputs;
  };
}
