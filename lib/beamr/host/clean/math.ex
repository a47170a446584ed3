defmodule Beamr.Host.Clean.Math do
  @moduledoc """
  Clean's `math`, under both spellings: `math_sin` and `math.sin`.

  What has no answer is NaN and what is too large is an infinity, as IEEE 754 has it; none of the
  functions fails.
  """

  use Beamr.Host, module: "env"

  @half_pi :math.pi() / 2

  for name <- [:sin, :cos, :tan] do
    @wasm "math_#{name}, math.#{name} (f64) -> f64"
    def unquote(name)(_wasm, x) when is_float(x), do: :math.unquote(name)(x)
    def unquote(name)(_wasm, _infinite), do: :nan
  end

  for name <- [:asin, :acos] do
    @wasm "math_#{name}, math.#{name} (f64) -> f64"
    def unquote(name)(_wasm, x) when is_float(x) and abs(x) <= 1, do: :math.unquote(name)(x)
    def unquote(name)(_wasm, _outside), do: :nan
  end

  @wasm "math_atan, math.atan (f64) -> f64"
  def atan(_wasm, x) when is_float(x), do: :math.atan(x)
  def atan(_wasm, :infinity), do: @half_pi
  def atan(_wasm, :neg_infinity), do: -@half_pi
  def atan(_wasm, :nan), do: :nan

  @wasm "math_atan2, math.atan2 (f64, f64) -> f64"
  def atan2(_wasm, y, x) when y == :nan or x == :nan, do: :nan

  # An infinity is as far away as anything else is near.
  def atan2(_wasm, y, x), do: :math.atan2(direction(y, x), direction(x, y))

  defp direction(:infinity, _other), do: 1.0
  defp direction(:neg_infinity, _other), do: -1.0
  defp direction(x, other) when is_float(other), do: x
  # Zero with the sign of x. Written as literals, the two zeros would be one.
  defp direction(x, _infinite), do: x * 0.0

  @wasm "math_sinh, math.sinh (f64) -> f64"
  def sinh(_wasm, x) when is_float(x) do
    :math.sinh(x)
  rescue
    ArithmeticError -> if x < 0, do: :neg_infinity, else: :infinity
  end

  def sinh(_wasm, x), do: x

  @wasm "math_cosh, math.cosh (f64) -> f64"
  def cosh(_wasm, x) when is_float(x) do
    :math.cosh(x)
  rescue
    ArithmeticError -> :infinity
  end

  def cosh(_wasm, :nan), do: :nan
  def cosh(_wasm, _infinite), do: :infinity

  @wasm "math_tanh, math.tanh (f64) -> f64"
  def tanh(_wasm, x) when is_float(x), do: :math.tanh(x)
  def tanh(_wasm, :infinity), do: 1.0
  def tanh(_wasm, :neg_infinity), do: -1.0
  def tanh(_wasm, :nan), do: :nan

  for {name, log} <- [ln: :log, log10: :log10, log2: :log2] do
    @wasm "math_#{name}, math.#{name} (f64) -> f64"
    def unquote(name)(_wasm, x) when is_float(x) and x > 0, do: :math.unquote(log)(x)
    def unquote(name)(_wasm, x) when x == 0, do: :neg_infinity
    def unquote(name)(_wasm, :infinity), do: :infinity
    def unquote(name)(_wasm, _negative), do: :nan
  end

  @wasm "math_exp, math.exp (f64) -> f64"
  def exp(_wasm, x) when is_float(x) do
    :math.exp(x)
  rescue
    ArithmeticError -> :infinity
  end

  def exp(_wasm, :neg_infinity), do: 0.0
  def exp(_wasm, x), do: x

  @wasm "math_exp2, math.exp2 (f64) -> f64"
  def exp2(wasm, x), do: pow(wasm, 2.0, x)

  @wasm "math_pow, math.pow (f64, f64) -> f64"
  def pow(_wasm, _x, y) when y == 0, do: 1.0
  def pow(_wasm, x, _y) when x == 1, do: 1.0
  def pow(_wasm, x, y) when x == :nan or y == :nan, do: :nan

  def pow(_wasm, x, y) when y in [:infinity, :neg_infinity] do
    cond do
      x == -1 -> 1.0
      is_atom(x) or abs(x) > 1 -> if y == :infinity, do: :infinity, else: 0.0
      true -> if y == :infinity, do: 0.0, else: :infinity
    end
  end

  def pow(_wasm, :infinity, y), do: if(y > 0, do: :infinity, else: 0.0)

  def pow(_wasm, :neg_infinity, y) do
    case {y > 0, odd?(y)} do
      {true, true} -> :neg_infinity
      {true, false} -> :infinity
      {false, true} -> y * 0.0
      {false, false} -> 0.0
    end
  end

  def pow(_wasm, x, y) when x == 0 and y < 0 do
    if negative?(x) and odd?(y), do: :neg_infinity, else: :infinity
  end

  def pow(_wasm, x, y) do
    if x < 0 and not whole?(y), do: :nan, else: power(x, y)
  end

  defp power(x, y) do
    :math.pow(x, y)
  rescue
    ArithmeticError -> if x < 0 and odd?(y), do: :neg_infinity, else: :infinity
  end

  # Floats beyond this are all whole and even.
  @exact 9_007_199_254_740_992

  defp whole?(y), do: abs(y) >= @exact or trunc(y) == y
  defp odd?(y), do: abs(y) < @exact and trunc(y) == y and rem(trunc(y), 2) != 0

  @wasm "math_sqrt, math.sqrt (f64) -> f64"
  def sqrt(_wasm, x) when is_float(x) and x >= 0, do: :math.sqrt(x)
  def sqrt(_wasm, :infinity), do: :infinity
  def sqrt(_wasm, _negative), do: :nan

  defp negative?(x), do: match?(<<1::1, _::63>>, <<x::float>>)
end
