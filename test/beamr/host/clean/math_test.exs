defmodule Beamr.Host.Clean.MathTest do
  use Beamr.CleanCase

  defp math(name, args) do
    args = for x <- args, do: {:f64, x}
    underscored = clean("math_#{name}", args, :f64, grant: [:math])
    assert clean("math.#{name}", args, :f64, grant: [:math]) == underscored
    underscored
  end

  for {name, args, result} <- [
        {"sin", [1.0], :math.sin(1.0)},
        {"sin", [0.0], 0.0},
        {"sin", [:infinity], :nan},
        {"cos", [0.0], 1.0},
        {"cos", [:nan], :nan},
        {"tan", [1.0], :math.tan(1.0)},
        {"tan", [:neg_infinity], :nan},
        {"asin", [1.0], :math.asin(1.0)},
        {"asin", [1.5], :nan},
        {"asin", [:infinity], :nan},
        {"acos", [1.0], 0.0},
        {"acos", [-1.000001], :nan},
        {"atan", [1.0], :math.atan(1.0)},
        {"atan", [:infinity], :math.pi() / 2},
        {"atan", [:neg_infinity], -:math.pi() / 2},
        {"atan", [:nan], :nan},
        {"atan2", [1.0, -1.0], :math.atan2(1.0, -1.0)},
        {"atan2", [0.0, -1.0], :math.pi()},
        {"atan2", [:infinity, :neg_infinity], 3 * :math.pi() / 4},
        {"atan2", [:infinity, 5.0], :math.pi() / 2},
        {"atan2", [5.0, :infinity], 0.0},
        {"atan2", [-5.0, :neg_infinity], -:math.pi()},
        {"atan2", [:nan, 1.0], :nan},
        {"sinh", [1.0], :math.sinh(1.0)},
        {"sinh", [1.0e3], :infinity},
        {"sinh", [-1.0e3], :neg_infinity},
        {"sinh", [:neg_infinity], :neg_infinity},
        {"cosh", [0.0], 1.0},
        {"cosh", [-1.0e3], :infinity},
        {"cosh", [:neg_infinity], :infinity},
        {"cosh", [:nan], :nan},
        {"tanh", [1.0e3], 1.0},
        {"tanh", [:neg_infinity], -1.0},
        {"tanh", [:nan], :nan},
        {"ln", [:math.exp(1)], 1.0},
        {"ln", [0.0], :neg_infinity},
        {"ln", [-1.0], :nan},
        {"ln", [:infinity], :infinity},
        {"ln", [:neg_infinity], :nan},
        {"log10", [1000.0], :math.log10(1000.0)},
        {"log10", [0.0], :neg_infinity},
        {"log2", [8.0], 3.0},
        {"log2", [:nan], :nan},
        {"exp", [0.0], 1.0},
        {"exp", [1.0e3], :infinity},
        {"exp", [-1.0e3], 0.0},
        {"exp", [:neg_infinity], 0.0},
        {"exp", [:nan], :nan},
        {"exp2", [10.0], 1024.0},
        {"exp2", [1024.0], :infinity},
        {"exp2", [:neg_infinity], 0.0},
        {"pow", [2.0, 0.5], :math.sqrt(2.0)},
        {"pow", [2.0, 10.0], 1024.0},
        {"pow", [:nan, 0.0], 1.0},
        {"pow", [2.0, :nan], :nan},
        {"pow", [-8.0, 1 / 3], :nan},
        {"pow", [-2.0, 3.0], -8.0},
        {"pow", [0.0, -1.0], :infinity},
        {"pow", [10.0, 400.0], :infinity},
        {"pow", [-10.0, 401.0], :neg_infinity},
        {"pow", [10.0, -400.0], 0.0},
        {"pow", [-1.0e300, 1.0e300], :infinity},
        {"pow", [0.5, :infinity], 0.0},
        {"pow", [0.5, :neg_infinity], :infinity},
        {"pow", [-2.0, :infinity], :infinity},
        {"pow", [-1.0, :infinity], 1.0},
        {"pow", [:infinity, -1.0], 0.0},
        {"pow", [:infinity, 0.5], :infinity},
        {"pow", [:neg_infinity, 3.0], :neg_infinity},
        {"pow", [:neg_infinity, 2.0], :infinity},
        {"pow", [:neg_infinity, -2.0], 0.0},
        {"pow", [:infinity, :infinity], :infinity},
        {"sqrt", [2.0], :math.sqrt(2.0)},
        {"sqrt", [-1.0], :nan},
        {"sqrt", [:infinity], :infinity},
        {"sqrt", [:nan], :nan}
      ] do
    test "math_#{name} of #{inspect(args)}" do
      assert math(unquote(name), unquote(args)) == unquote(result)
    end
  end

  test "keeps the sign of zero" do
    # Literals of the two zeros may be taken for one.
    <<minus_zero::float>> = negative = <<1::1, 0::63>>
    zero = fn name, args -> <<math(name, args)::float>> end

    assert zero.("sqrt", [minus_zero]) == negative
    assert zero.("sin", [minus_zero]) == negative
    assert zero.("atan2", [minus_zero, 1.0]) == negative
    assert zero.("atan2", [-5.0, :infinity]) == negative
    assert zero.("pow", [:neg_infinity, -3.0]) == negative
    assert zero.("pow", [minus_zero, 3.0]) == negative
    assert math("pow", [minus_zero, -1.0]) == :neg_infinity
    assert math("pow", [minus_zero, -2.0]) == :infinity
    assert math("ln", [minus_zero]) == :neg_infinity
  end

  test "fails for no float" do
    floats = [:nan, :infinity, :neg_infinity, 0.0, -0.0, 1.0, -1.0, 1.0e308, -1.0e308, 5.0e-324]
    unary = ~w(sin cos tan asin acos atan sinh cosh tanh ln log10 log2 exp exp2 sqrt)a

    for name <- unary, x <- floats do
      result = apply(Beamr.Host.Clean.Math, name, [nil, x])
      assert is_float(result) or result in [:nan, :infinity, :neg_infinity]
    end

    for name <- [:atan2, :pow], x <- floats, y <- floats ++ [0.5, 2.0, 3.0, -3.0] do
      result = apply(Beamr.Host.Clean.Math, name, [nil, x, y])
      assert is_float(result) or result in [:nan, :infinity, :neg_infinity]
    end
  end
end
