/* An external delegate of LiteRT that takes additions of float tensors of one shape without an
 * activation, and computes them on the CPU: a second accelerator for tests, which any machine with a C compiler has.
 *
 * Options (all optional):
 *   at_most   how many additions it takes; all by default
 *   off_by    is added to each sum, so that a test sees who computed it; 0 by default
 *   fail      "create", "prepare" or "invoke": where it gives up
 *
 * The structs are those of TensorFlow Lite's tensorflow/lite/core/c/common.h, as of 2.14 and as of
 * ai-edge-litert 2.3 (checked there by hand; neither wheel ships headers). They have only ever grown
 * at their ends, so each is declared as far as it is used. An interpreter makes no TfLiteRegistration
 * of its own here: it reads ours, which has room for fields that came later.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { kOk = 0, kError = 1 };
enum { kFloat32 = 1 };
enum { kBuiltinAdd = 0 };
enum { kNoActivation = 0 };
enum { kAllowDynamicTensors = 1 };

typedef struct {
  int size;
  int data[];
} IntArray;

typedef struct {
  float scale;
  int32_t zero_point;
} QuantizationParams;

typedef struct {
  int type;
  float* data;
  IntArray* dims;
  QuantizationParams params;
  int allocation_type;
  size_t bytes;
  const void* allocation;
  const char* name;
  void* delegate;
  int buffer_handle;
  bool data_is_stale;
  bool is_variable;
  struct {
    int type;
    void* params;
  } quantization;
  void* sparsity;
  const IntArray* dims_signature;
} Tensor;

typedef struct {
  IntArray* inputs;
  IntArray* outputs;
  IntArray* intermediates;
  IntArray* temporaries;
  void* user_data;
  void* builtin_data;
} Node;

/* What a node's builtin_data of an addition begins with. */
typedef struct {
  int activation;
} AddParams;

typedef struct Context Context;
typedef struct Delegate Delegate;

typedef struct {
  void* (*init)(Context*, const char* buffer, size_t length);
  void (*free)(Context*, void* buffer);
  int (*prepare)(Context*, Node*);
  int (*invoke)(Context*, Node*);
  const char* (*profiling_string)(const Context*, const Node*);
  int32_t builtin_code;
  const char* custom_name;
  int version;
  void* registration_external;
  void* async_kernel;
  uint64_t inplace_operator;
  uint64_t later[4];
} Registration;

struct Context {
  size_t tensors_size;
  int (*GetExecutionPlan)(Context*, IntArray** plan);
  Tensor* tensors;
  void* impl;
  int (*ResizeTensor)(Context*, Tensor*, IntArray* size);
  void (*ReportError)(Context*, const char* format, ...);
  int (*AddTensors)(Context*, int count, int* first);
  int (*GetNodeAndRegistration)(Context*, int index, Node**, Registration**);
  int (*ReplaceNodeSubsetsWithDelegateKernels)(Context*, Registration, const IntArray* nodes,
                                               Delegate*);
};

struct Delegate {
  void* data;
  int (*Prepare)(Context*, Delegate*);
  int (*CopyFromBufferHandle)(Context*, Delegate*, int handle, Tensor*);
  int (*CopyToBufferHandle)(Context*, Delegate*, int handle, Tensor*);
  void (*FreeBufferHandle)(Context*, Delegate*, int* handle);
  int64_t flags;
  void* opaque_delegate_builder;
};

typedef struct {
  Delegate* delegate;
  IntArray* nodes_to_replace;
  IntArray* input_tensors;
  IntArray* output_tensors;
} DelegateParams;

typedef struct {
  int at_most;
  float off_by;
  const char* fail;
} Options;

/* One addition: two inputs and an output. What only this kernel reads has no memory in the
 * interpreter, and gets some here. */
typedef struct {
  int inputs[2];
  int output;
  bool is_inner;
  float* inner;
} Step;

typedef struct {
  Options* options;
  int count;
  Step* steps;
} Kernel;

static bool fails(const Options* options, const char* where) {
  return options->fail != NULL && strcmp(options->fail, where) == 0;
}

static bool alike(const Tensor* a, const Tensor* b) {
  return a->type == kFloat32 && b->type == kFloat32 && a->dims->size == b->dims->size &&
         memcmp(a->dims->data, b->dims->data, sizeof(int) * (size_t)a->dims->size) == 0;
}

static bool holds(const IntArray* array, int value) {
  for (int i = 0; i < array->size; i++) {
    if (array->data[i] == value) return true;
  }
  return false;
}

static void* kernel_init(Context* context, const char* buffer, size_t length) {
  const DelegateParams* params = (const DelegateParams*)buffer;
  Kernel* kernel = malloc(sizeof(Kernel));
  (void)length;
  kernel->options = params->delegate->data;
  kernel->count = params->nodes_to_replace->size;
  kernel->steps = calloc((size_t)kernel->count, sizeof(Step));
  for (int i = 0; i < kernel->count; i++) {
    Step* step = &kernel->steps[i];
    Node* node;
    Registration* registration;
    context->GetNodeAndRegistration(context, params->nodes_to_replace->data[i], &node,
                                    &registration);
    step->inputs[0] = node->inputs->data[0];
    step->inputs[1] = node->inputs->data[1];
    step->output = node->outputs->data[0];
    step->is_inner = !holds(params->output_tensors, step->output);
  }
  return kernel;
}

static void kernel_free(Context* context, void* buffer) {
  Kernel* kernel = buffer;
  (void)context;
  for (int i = 0; i < kernel->count; i++) free(kernel->steps[i].inner);
  free(kernel->steps);
  free(kernel);
}

static size_t size_of(const Tensor* tensor) {
  size_t size = 1;
  for (int i = 0; i < tensor->dims->size; i++) size *= (size_t)tensor->dims->data[i];
  return size;
}

static int kernel_prepare(Context* context, Node* node) {
  Kernel* kernel = node->user_data;
  if (fails(kernel->options, "prepare")) {
    context->ReportError(context, "adds: told to fail in prepare");
    return kError;
  }
  for (int i = 0; i < kernel->count; i++) {
    Step* step = &kernel->steps[i];
    const Tensor* given = &context->tensors[step->inputs[0]];
    const size_t bytes = sizeof(IntArray) + sizeof(int) * (size_t)given->dims->size;
    IntArray* dims = malloc(bytes);
    memcpy(dims, given->dims, bytes);
    /* It owns the array from here on. */
    if (context->ResizeTensor(context, &context->tensors[step->output], dims) != kOk) {
      return kError;
    }
    if (step->is_inner) {
      free(step->inner);
      step->inner = malloc(sizeof(float) * (size_of(given) + 1));
    }
  }
  return kOk;
}

static float* values(const Kernel* kernel, const Context* context, int tensor) {
  for (int i = 0; i < kernel->count; i++) {
    if (kernel->steps[i].output == tensor && kernel->steps[i].is_inner) {
      return kernel->steps[i].inner;
    }
  }
  return context->tensors[tensor].data;
}

static int kernel_invoke(Context* context, Node* node) {
  const Kernel* kernel = node->user_data;
  if (fails(kernel->options, "invoke")) {
    context->ReportError(context, "adds: told to fail in invoke");
    return kError;
  }
  for (int i = 0; i < kernel->count; i++) {
    const Step* step = &kernel->steps[i];
    const float* a = values(kernel, context, step->inputs[0]);
    const float* b = values(kernel, context, step->inputs[1]);
    float* sum = values(kernel, context, step->output);
    const size_t size = size_of(&context->tensors[step->output]);
    for (size_t n = 0; n < size; n++) sum[n] = a[n] + b[n] + kernel->options->off_by;
  }
  return kOk;
}

static int prepare(Context* context, Delegate* delegate) {
  const Options* options = delegate->data;
  IntArray* plan;
  IntArray* taken;
  int status;
  if (context->GetExecutionPlan(context, &plan) != kOk) return kError;
  taken = calloc(1, sizeof(IntArray) + sizeof(int) * (size_t)plan->size);
  for (int i = 0; i < plan->size; i++) {
    Node* node;
    Registration* registration;
    if (context->GetNodeAndRegistration(context, plan->data[i], &node, &registration) != kOk) {
      free(taken);
      return kError;
    }
    if (registration->builtin_code == kBuiltinAdd && taken->size < options->at_most &&
        ((const AddParams*)node->builtin_data)->activation == kNoActivation &&
        alike(&context->tensors[node->inputs->data[0]],
              &context->tensors[node->inputs->data[1]])) {
      taken->data[taken->size++] = plan->data[i];
    }
  }
  Registration kernel = {
      .init = kernel_init,
      .free = kernel_free,
      .prepare = kernel_prepare,
      .invoke = kernel_invoke,
      .custom_name = "AddsDelegate",
      .version = 1,
  };
  status = context->ReplaceNodeSubsetsWithDelegateKernels(context, kernel, taken, delegate);
  free(taken);
  return status;
}

__attribute__((visibility("default"))) Delegate* tflite_plugin_create_delegate(
    const char* const* keys, const char* const* values, size_t count,
    void (*report_error)(const char*)) {
  Options* options = calloc(1, sizeof(Options));
  Delegate* delegate;
  options->at_most = INT32_MAX;
  for (size_t i = 0; i < count; i++) {
    if (strcmp(keys[i], "at_most") == 0) {
      options->at_most = atoi(values[i]);
    } else if (strcmp(keys[i], "off_by") == 0) {
      options->off_by = strtof(values[i], NULL);
    } else if (strcmp(keys[i], "fail") == 0) {
      options->fail = strdup(values[i]);
    } else {
      report_error("adds: there is no such option");
      free(options);
      return NULL;
    }
  }
  if (fails(options, "create")) {
    report_error("adds: told to fail in create");
    free((void*)options->fail);
    free(options);
    return NULL;
  }
  delegate = calloc(1, sizeof(Delegate));
  delegate->data = options;
  delegate->Prepare = prepare;
  delegate->flags = kAllowDynamicTensors;
  return delegate;
}

__attribute__((visibility("default"))) void tflite_plugin_destroy_delegate(Delegate* delegate) {
  Options* options;
  /* The Python loader destroys also what was never made. */
  if (delegate == NULL) return;
  options = delegate->data;
  free((void*)options->fail);
  free(options);
  free(delegate);
}
