/* A CUDA driver whose launches do nothing but are noted: grid, block, stream, function, arguments. */
#include <stdint.h>
#include <string.h>

enum { ARGUMENTS = 96, NOTES = 512, FUNCTIONS = 8192 };

struct note {
  uint32_t grid[3], block[3], shared, count;
  uint64_t stream, function, arguments[ARGUMENTS];
};
struct config { /* CUlaunchConfig */
  uint32_t grid[3], block[3], shared;
  uint64_t stream;
};

static struct note notes[NOTES];
static uint8_t sizes[FUNCTIONS][ARGUMENTS];
static uint32_t counts[FUNCTIONS];
static uint64_t launches;
static int noting = 1;

/* Whether launches are noted, or only counted. */
void fake_noting(int on) { noting = on; }

uint64_t fake_launches(void) { return launches; }
const struct note *fake_note(uint64_t index) { return &notes[index % NOTES]; }

/* A function of `count` arguments of so many bytes each. */
void fake_function(uint64_t function, uint32_t count, const uint8_t *bytes) {
  counts[function] = count;
  memcpy(sizes[function], bytes, count);
}

static int noted(const struct config *config, uint64_t function, void **arguments) {
  struct note *note = &notes[launches++ % NOTES];
  if (!noting) return 0;
  memset(note, 0, sizeof *note);
  memcpy(note->grid, config->grid, sizeof note->grid);
  memcpy(note->block, config->block, sizeof note->block);
  note->shared = config->shared;
  note->stream = config->stream;
  note->function = function;
  note->count = function < FUNCTIONS ? counts[function] : 0;
  for (uint32_t i = 0; i < note->count; i++) memcpy(&note->arguments[i], arguments[i], sizes[function][i]);
  return 0;
}

int cuLaunchKernelEx(const struct config *config, uint64_t function, void **arguments, void **extra) {
  return noted(config, function, arguments);
}
int cuLaunchKernel(uint64_t function, uint32_t x, uint32_t y, uint32_t z, uint32_t bx, uint32_t by, uint32_t bz,
                   uint32_t shared, uint64_t stream, void **arguments, void **extra) {
  struct config config = {{x, y, z}, {bx, by, bz}, shared, stream};
  return noted(&config, function, arguments);
}

/* The rest says that all is well. */
int cuDeviceGet(int *device, int ordinal) { *device = 0; return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) { *value = 232448; return 0; }
int cuDevicePrimaryCtxRetain(void **context, int device) { *context = (void *)1; return 0; }
int cuCtxSetCurrent(void *context) { return 0; }
int cuCtxGetCurrent(void **context) { *context = (void *)1; return 0; }
int cuCtxSetLimit(void) { return 0; }
int cuCtxGetLimit(size_t *value, int limit) { *value = 0; return 0; }
int cuDriverGetVersion(int *version) { *version = 13000; return 0; }
int cuFuncGetAttribute(int *value, int attribute, void *function) { *value = attribute ? 0 : 1024; return 0; }
int cuFuncSetAttribute(void) { return 0; }
int cuFuncSetCacheConfig(void) { return 0; }
int cuGetErrorString(int error, const char **text) { *text = "the fake driver"; return 0; }
int cuModuleLoadData(void **module, const void *image) { *module = (void *)1; return 0; }
int cuModuleGetFunction(void **function, void *module, const char *name) { *function = (void *)1; return 0; }
int cuOccupancyMaxActiveClusters(int *count, void *function, void *config) { *count = 1; return 0; }
int cuPointerGetAttribute(void *out, int attribute, uint64_t pointer) { memcpy(out, &pointer, 8); return 0; }
int cuPointerGetAttributes(void) { return 0; }
int cuTensorMapEncodeTiled(void) { return 0; }
int cuTensorMapEncodeIm2col(void) { return 0; }
