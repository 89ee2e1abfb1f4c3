// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
//
// The operator on threads with flash<double>, for all conformance tests.
#include "attention/matrix.hpp"

namespace attention_test {

template void check_policies<orrery::flash<double>>(const orrery::any_topology&, int, orrery::attention_shape,
                                                    const orrery::full&, const conformance::any_layout&, std::uint64_t&,
                                                    const conformance::change_of_problem&);
template void check_policies<orrery::flash<double>>(const orrery::any_topology&, int, orrery::attention_shape,
                                                    const orrery::causal&, const conformance::any_layout&,
                                                    std::uint64_t&, const conformance::change_of_problem&);
template void check_policies<orrery::flash<double>>(const orrery::any_topology&, int, orrery::attention_shape,
                                                    const band&, const conformance::any_layout&, std::uint64_t&,
                                                    const conformance::change_of_problem&);

}  // namespace attention_test
