// What every suite needs: where the gateway is, and a key. `run.py` sets both.
export const base = process.env.FOREBAY_COMPAT_URL;
export const key = process.env.FOREBAY_COMPAT_KEY;
export const model = "tiny";
export const embedding = "tiny-embed";

if (!base || !key) {
  throw new Error("FOREBAY_COMPAT_URL and FOREBAY_COMPAT_KEY are needed: run `make compat`");
}

/** JSON schema of the tool that the simulated engine calls when it is told `/tool`. */
export const parameters = {
  type: "object",
  properties: { city: { type: "string" } },
  required: ["city"],
  additionalProperties: false,
};
