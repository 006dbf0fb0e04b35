#include "kernels/fused.h"

#include <algorithm>
#include <cstdint>
#include <memory>
#include <unordered_map>
#include <utility>

#include "kernels/cpu_primitive.h"

namespace tandem::kernels {
namespace {

namespace mx = mlx::core;

// An array of a program: an input of the whole, or an output of one of its steps.
struct Place {
  int step;  // -1: an input
  int index;
};

struct Step {
  std::shared_ptr<mx::Primitive> primitive;
  std::vector<Place> inputs;
  std::vector<mx::Shape> shapes;
  std::vector<mx::Dtype> dtypes;
  std::vector<int> last_read;  // steps whose results nothing reads after this one
};

struct Program {
  std::vector<Step> steps;  // each after those it reads
  std::vector<Place> outputs;
};

const mx::array& at(const Place& place, const std::vector<mx::array>& inputs,
                    const std::vector<std::vector<mx::array>>& made) {
  return place.step < 0 ? inputs[place.index] : made[place.step][place.index];
}

std::vector<mx::array> gather(const std::vector<Place>& places, const std::vector<mx::array>& inputs,
                              const std::vector<std::vector<mx::array>>& made) {
  std::vector<mx::array> found;
  for (const Place& place : places) found.push_back(at(place, inputs, made));
  return found;
}

// The program as the operations it was made of.
std::vector<mx::array> replay(const Program& program, const std::vector<mx::array>& inputs) {
  std::vector<std::vector<mx::array>> made;
  for (const Step& step : program.steps) {
    made.push_back(
        mx::array::make_arrays(step.shapes, step.dtypes, step.primitive, gather(step.inputs, inputs, made)));
  }
  return gather(program.outputs, inputs, made);
}

class Fused : public ReferencedPrimitive {
 public:
  Fused(mx::Stream stream, std::shared_ptr<const Program> program)
      : ReferencedPrimitive(stream, [program](const auto& inputs) { return replay(*program, inputs); }),
        program_(std::move(program)) {}

  // Memory between the steps is taken when they run and given back after its last reader: the caller's thread
  // may be many operations ahead.
  Work work(const std::vector<mx::array>& inputs, const std::vector<mx::array>& outputs) const override {
    return [program = program_, from = weak(inputs), to = weak(outputs)] {
      std::vector<std::vector<mx::array>> made(program->steps.size());
      for (std::size_t i = 0; i < program->steps.size(); ++i) {
        const Step& step = program->steps[i];
        for (std::size_t k = 0; k < step.shapes.size(); ++k) {
          made[i].push_back(memory_of(*program, {static_cast<int>(i), static_cast<int>(k)}, to));
        }
        static_cast<const CpuPrimitive*>(step.primitive.get())
            ->work(gather(step.inputs, from, made), made[i])();
        for (const int done : step.last_read) made[done].clear();
      }
    };
  }
  const char* name() const override { return "TandemFused"; }

 private:
  // The stream keeps their memory; a whole copy would keep their graph as well.
  static std::vector<mx::array> weak(const std::vector<mx::array>& arrays) {
    std::vector<mx::array> copies;
    for (const auto& array : arrays) copies.push_back(mx::array::unsafe_weak_copy(array));
    return copies;
  }

  // Of a step's result: an output's, or some of its own.
  static mx::array memory_of(const Program& program, const Place& place,
                             const std::vector<mx::array>& outputs) {
    for (std::size_t i = 0; i < program.outputs.size(); ++i) {
      const Place& output = program.outputs[i];
      if (output.step == place.step && output.index == place.index) return outputs[i];
    }
    const Step& step = program.steps[place.step];
    std::vector<mx::array> own{mx::array(step.shapes[place.index], step.dtypes[place.index], nullptr, {})};
    allocate(own);
    return own.front();
  }

  std::shared_ptr<const Program> program_;
};

// Fills in Step::last_read.
void find_last_readers(Program& program) {
  std::vector<int> last(program.steps.size());
  for (std::size_t i = 0; i < program.steps.size(); ++i) {
    last[i] = static_cast<int>(i);
    for (const Place& place : program.steps[i].inputs) {
      if (place.step >= 0) last[place.step] = static_cast<int>(i);
    }
  }
  for (std::size_t i = 0; i < last.size(); ++i)
    program.steps[last[i]].last_read.push_back(static_cast<int>(i));
}

// Collects what leads to some arrays.
class Tracer {
 public:
  Place visit(const mx::array& array) {
    if (!is_step(array)) return input(array);
    const auto key = array.outputs().front().id();
    auto found = steps_.find(key);
    if (found == steps_.end()) found = steps_.emplace(key, add_step(array)).first;
    return {found->second, array.sibling_position()};
  }

  Program program;
  std::vector<mx::array> inputs;

 private:
  static bool is_step(const mx::array& array) {
    return array.status() == mx::array::Status::unscheduled && array.has_primitive() &&
           dynamic_cast<const CpuPrimitive*>(&array.primitive()) != nullptr &&
           dynamic_cast<const Fused*>(&array.primitive()) == nullptr;
  }

  Place input(const mx::array& array) {
    const auto found =
        std::find_if(inputs.begin(), inputs.end(), [&](auto& one) { return one.id() == array.id(); });
    const int index = static_cast<int>(found - inputs.begin());
    if (found == inputs.end()) inputs.push_back(array);
    return {-1, index};
  }

  int add_step(const mx::array& array) {
    Step step{array.primitive_ptr(), {}, {}, {}, {}};
    for (const auto& read : array.inputs()) step.inputs.push_back(visit(read));
    for (const auto& output : array.outputs()) {
      step.shapes.push_back(output.shape());
      step.dtypes.push_back(output.dtype());
    }
    program.steps.push_back(std::move(step));
    return static_cast<int>(program.steps.size()) - 1;
  }

  std::unordered_map<std::uintptr_t, int> steps_;  // by the id of their first output
};

}  // namespace

std::vector<mx::array> fused(const std::vector<mx::array>& outputs) {
  Tracer tracer;
  std::vector<mx::Shape> shapes;
  std::vector<mx::Dtype> dtypes;
  std::vector<std::size_t> computed;  // which of the outputs the program gives
  for (std::size_t i = 0; i < outputs.size(); ++i) {
    const Place place = tracer.visit(outputs[i]);
    if (place.step < 0) continue;
    tracer.program.outputs.push_back(place);
    computed.push_back(i);
    shapes.push_back(outputs[i].shape());
    dtypes.push_back(outputs[i].dtype());
  }
  if (tracer.program.steps.size() < 2) return outputs;
  const mx::Stream stream = tracer.program.steps.front().primitive->stream();
  find_last_readers(tracer.program);
  auto primitive =
      std::make_shared<Fused>(stream, std::make_shared<const Program>(std::move(tracer.program)));
  const auto results = mx::array::make_arrays(std::move(shapes), dtypes, std::move(primitive), tracer.inputs);
  std::vector<mx::array> all = outputs;
  for (std::size_t i = 0; i < computed.size(); ++i) all[computed[i]] = results[i];
  return all;
}

}  // namespace tandem::kernels
