// Numbers that are known when a kernel runs, as constants of the compiler's.
#pragma once

#include <type_traits>
#include <utility>

template <class Run, int... NUMBERS>
inline void with_constant_of(int64_t number, Run &&run, std::integer_sequence<int, NUMBERS...>) {
  ((number == NUMBERS ? run(std::integral_constant<int, NUMBERS>{}) : void()), ...);
}

// Calls `run` with a number below END as a constant.
template <int END, class Run> inline void with_constant(int64_t number, Run &&run) {
  with_constant_of(number, run, std::make_integer_sequence<int, END>{});
}
