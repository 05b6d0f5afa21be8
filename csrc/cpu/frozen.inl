// Packs the weights of frozen layers. isa_*.cpp compile this file with lstm.inl.
#pragma once

#include "cpu/lstm.inl"
#include "cpu/probe.inl"

namespace fused_lstm::cpu {
namespace {

// Where a panel has element (k, column n of vector v), as pack.inl and int8.inl draw it.
template <class Operand>
int64_t panel_index(int64_t k, int v, int64_t n) {
  constexpr int64_t lanes = Lanes<Floats>::count, step = kDepthStep<Operand>;
  return ((k / step * kTileVectors + v) * lanes + n) * step + k % step;
}

template <class Types>
int64_t frozen_panel_bytes(int64_t depth) {
  constexpr int64_t columns = kTileVectors * lanes_of<Types>();
  constexpr int64_t of_column =
      std::is_same_v<Types, FrozenInt8> ? sizeof(float) + sizeof(int32_t) : 0;
  constexpr int64_t element = sizeof(typename Types::Operand);
  return columns * (panel_depth<Types>(depth) * element + of_column);
}

// Calls body(bytes of the panel, v, n, row) for each row of a weight, which is column n of vector v
// of a panel.
template <class Types, class Bytes, class Body>
void for_rows(int64_t rows, int64_t depth, PanelLayout layout, Bytes* panels, const Body& body) {
  constexpr int64_t lanes = lanes_of<Types>();
  const int64_t bytes = frozen_panel_bytes<Types>(depth);
  const Packing<Types> w = {nullptr, rows, depth, layout};
  const int64_t count = panel_count(w);
  for (int64_t panel = 0; panel < count; ++panel) {
    for (int v = 0; v < kTileVectors; ++v) {
      const RowRange range = rows_of_vector(w, panel, v);
      for (int64_t n = 0; n < lanes && n < range.count; ++n) {
        body(panels + panel * bytes, v, n, range.first + n);
      }
    }
  }
}

template <class Types>
int64_t frozen_bytes(const FrozenMatrix& w) {
  const Packing<Types> packing = {nullptr, w.rows, w.columns, w.layout};
  return panel_count(packing) * frozen_panel_bytes<Types>(w.columns);
}

// Where an Int8 panel has the scale of column n of vector v.
template <class Bytes>
Bytes* column_scale(Bytes* panel, int64_t depth, int v, int64_t n) {
  constexpr int64_t lanes = Lanes<Floats>::count;
  return panel + panel_depth<FrozenInt8>(depth) * kTileVectors * lanes +
         (v * lanes + n) * static_cast<int64_t>(sizeof(float));
}

template <class Types>
void pack_frozen(const FrozenMatrix& w, void* to) {
  using Operand = typename Types::Operand;
  constexpr int64_t lanes = lanes_of<Types>();
  __builtin_memset(to, 0, frozen_bytes<Types>(w));
  const float* const floats = static_cast<const float*>(w.data);
  const Operand* const elements = static_cast<const Operand*>(w.data);
  for_rows<Types>(
      w.rows, w.columns, w.layout, static_cast<char*>(to),
      [&](char* panel, int v, int64_t n, int64_t row) {
        Operand* const operands = reinterpret_cast<Operand*>(panel);
        const int64_t first = row * w.columns;
        if constexpr (std::is_same_v<Types, FrozenInt8>) {
          float magnitude = 0;
          for (int64_t k = 0; w.is_float && k < w.columns; ++k) {
            const float x = __builtin_fabsf(floats[first + k]);
            magnitude = x > magnitude ? x : magnitude;
          }
          const Scale scale = int8_scale(magnitude);
          int32_t sum = 0;
          for (int64_t k = 0; k < w.columns; ++k) {
            const int32_t q = w.is_float ? quantized(floats[first + k], scale.inverse)
                                         : elements[first + k].value;
            operands[panel_index<Operand>(k, v, n)] = {static_cast<int8_t>(q)};
            sum += q * kOffset;
          }
          char* const at = column_scale(panel, w.columns, v, n);
          __builtin_memcpy(at, w.is_float ? &scale.scale : w.scales + row, sizeof(float));
          __builtin_memcpy(at + kTileVectors * lanes * sizeof(float), &sum, sizeof(sum));
        } else {
          for (int64_t k = 0; k < w.columns; ++k) {
            Operand& operand = operands[panel_index<Operand>(k, v, n)];
            if (w.is_float) {
              store<float>(&operand, floats[first + k], 1);
            } else {
              operand = elements[first + k];
            }
          }
        }
      });
}

// The probe of the plan's figure.
template <class Types>
using SumOf = std::conditional_t<std::is_same_v<Types, FrozenInt8>, Ints, Floats>;
template <class Types>
constexpr auto probe_operands = probe_multiply<SumOf<Types>, typename Types::Operand>;
template <class Types>
constexpr int64_t kProbeOperations =
    2 * lanes_of<Types>() * kDepthStep<typename Types::Operand> * kProbeSums;
#ifdef FUSED_LSTM_AMX
template <>
constexpr auto probe_operands<FrozenBFloat16> = probe_amx;
template <>
constexpr int64_t kProbeOperations<FrozenBFloat16> = kAmxProbeFlops;
#endif

template <class Types>
constexpr FrozenFunctions<Types> frozen_functions = {
    {static_cast<int32_t>(lanes_of<Types>()), kDepthStep<typename Types::Operand>,
     static_cast<int32_t>(kDepthUnit<Types>), std::is_same_v<Types, FrozenInt8> ? kOffset : 0},
    probe_operands<Types>,
    kProbeOperations<Types>,
    pack_frozen<Types>,
    forward_scratch_size<Types>,
    forward<Types>};

}  // namespace

}  // namespace fused_lstm::cpu
