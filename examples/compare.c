/* How alike two faces are, by an ONNX file of `persona export --with-preprocessing`.
 *
 *     ./compare model.onnx first.ppm second.ppm
 *
 * A face is a binary PPM (P6, 8 bit) that is cut as the model's card says, of any size: Persona-S
 * wants it turned by five points (README.md). Plain C11 and onnxruntime's C API; ./scripts/example
 * builds it. onnxruntime reports to its maker by default: set ORT_DISABLE_TELEMETRY=1 in the
 * environment. */

#include <ctype.h>
#include <onnxruntime_c_api.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#define MAX_SIDE 4096

static const OrtApi *ort;

static void fail(const char *where, const char *what) {
    fprintf(stderr, "%s: %s\n", where, what);
    exit(1);
}

/* Ends the program with onnxruntime's own words. */
static void check(OrtStatus *status, const char *where) {
    if (status != NULL) fail(where, ort->GetErrorMessage(status));
}

typedef struct {
    int64_t shape[4]; /* 1, height, width, 3 */
    uint8_t *pixels;
    size_t bytes;
} Face;

static Face read_ppm(const char *path) {
    FILE *file = fopen(path, "rb");
    if (file == NULL) fail(path, "cannot be opened");
    unsigned width, height, maximum;
    /* One white space, and no more, lies between the maximum and the first pixel. */
    if (fscanf(file, "P6 %u %u %u", &width, &height, &maximum) != 3 || maximum != 255 ||
        !isspace(fgetc(file)))
        fail(path, "is no binary PPM of 8 bit");
    if (width < 2 || height < 2 || width > MAX_SIDE || height > MAX_SIDE)
        fail(path, "its sides must be of 2 to 4096 px");
    Face face = {{1, height, width, 3}, NULL, (size_t)width * height * 3};
    face.pixels = malloc(face.bytes);
    if (face.pixels == NULL) fail(path, "no memory left");
    if (fread(face.pixels, 1, face.bytes, file) != face.bytes) fail(path, "is cut off");
    fclose(file);
    return face;
}

/* The embedding of a face, of unit length; the caller releases `*output`. */
static const float *embed(OrtSession *session, Face face, OrtValue **output, size_t *length) {
    const char *inputs[] = {"images"}, *outputs[] = {"embedding"};
    OrtMemoryInfo *memory;
    OrtValue *images;
    OrtTensorTypeAndShapeInfo *shape;
    float *embedding;
    check(ort->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &memory), "memory");
    check(ort->CreateTensorWithDataAsOrtValue(memory, face.pixels, face.bytes, face.shape, 4,
                                              ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8, &images),
          "face");
    *output = NULL;
    check(ort->Run(session, NULL, inputs, (const OrtValue *const *)&images, 1, outputs, 1, output),
          "model (was it exported with --with-preprocessing?)");
    check(ort->GetTensorTypeAndShape(*output, &shape), "embedding");
    check(ort->GetTensorShapeElementCount(shape, length), "embedding");
    check(ort->GetTensorMutableData(*output, (void **)&embedding), "embedding");
    ort->ReleaseTensorTypeAndShapeInfo(shape);
    ort->ReleaseValue(images);
    ort->ReleaseMemoryInfo(memory);
    return embedding;
}

int main(int count, char **arguments) {
    if (count != 4) fail("usage", "compare MODEL.onnx FIRST.ppm SECOND.ppm");
    ort = OrtGetApiBase()->GetApi(ORT_API_VERSION);
    if (ort == NULL) fail("onnxruntime", "the library is older than its headers");

    OrtEnv *environment;
    OrtSessionOptions *options;
    OrtSession *session;
    check(ort->CreateEnv(ORT_LOGGING_LEVEL_FATAL, "compare", &environment), "onnxruntime");
    check(ort->CreateSessionOptions(&options), "onnxruntime");
    check(ort->CreateSession(environment, arguments[1], options, &session), arguments[1]);

    OrtValue *outputs[2];
    const float *embeddings[2];
    size_t lengths[2];
    for (int side = 0; side < 2; side++) {
        Face face = read_ppm(arguments[2 + side]);
        embeddings[side] = embed(session, face, &outputs[side], &lengths[side]);
        free(face.pixels);
    }
    if (lengths[0] != lengths[1]) fail(arguments[1], "gives embeddings of two lengths");
    double similarity = 0;
    for (size_t i = 0; i < lengths[0]; i++) similarity += embeddings[0][i] * embeddings[1][i];
    printf("%.6f\n", similarity);

    for (int side = 0; side < 2; side++) ort->ReleaseValue(outputs[side]);
    ort->ReleaseSession(session);
    ort->ReleaseSessionOptions(options);
    ort->ReleaseEnv(environment);
    return 0;
}
