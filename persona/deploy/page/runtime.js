// onnxruntime-web: networks are opened here and run one at a time.
import * as ort from "./ort.wasm.bundle.min.mjs";

ort.env.wasm.numThreads = 1; // threads would need headers that a plain server does not send
ort.env.logLevel = "error";
let running = Promise.resolve();

export const tensor = (data, shape) => (
  new ort.Tensor(data instanceof Uint8Array ? "uint8" : "float32", data, shape));

// A file of this folder.
export async function read(name) {
  const answer = await fetch(name);
  if (!answer.ok) throw new Error(`${name}: the server answers ${answer.status}`);
  return answer;
}

// An ONNX file of this folder as a function from tensors to data, both by name.
export async function open(name) {
  const model = new Uint8Array(await (await read(name)).arrayBuffer());
  const session = await ort.InferenceSession.create(model, { executionProviders: ["wasm"] });
  return (inputs) => {
    const outputs = running.then(() => session.run(inputs));
    running = outputs.catch(() => {});
    return outputs;
  };
}
