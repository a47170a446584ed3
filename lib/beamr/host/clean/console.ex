defmodule Beamr.Host.Clean.Console do
  @moduledoc """
  Clean's `console`: printing, and reading lines.

  Output goes where Elixir's goes, the group leader of the process that calls the guest (a
  server's is its own); `console_error` and `console_warn` go to standard error. `output:`,
  `errors:` and `input:` name other devices.

      hosts: [{Beamr.Host.Clean.Console, output: file}]

  `print` and `print_string` write what they are given; the others add a newline. Numbers are
  written as JavaScript writes them: 1.0 is "1", 1e21 is "1e+21".

  The `input` functions write their prompt and read a line, which is "" at the end of the input.
  `input_integer` and `input_float` read the number it begins with, or 0. `input_yesno` is true for
  y, yes, true and 1 in any case. `input_range` is the number brought into its range, or the
  range's lower end.
  """

  use Beamr.Host, module: "env", types: Beamr.Host.Clean.Types

  alias Beamr.Host.Clean.Text

  @impl true
  def init(arg) do
    arg = if Keyword.keyword?(arg), do: arg, else: []

    %{
      output: arg[:output] || :stdio,
      errors: arg[:errors] || :stderr,
      input: arg[:input] || :stdio
    }
  end

  @wasm "print, print_string (string)"
  def print(_wasm, devices, text), do: write(devices.output, text)

  @wasm "printl, console_log (string)"
  def printl(_wasm, devices, text), do: write(devices.output, [text, ?\n])

  @wasm "print_integer (integer)"
  def print_integer(_wasm, devices, n), do: write(devices.output, [Integer.to_string(n), ?\n])

  @wasm "print_float (float)"
  def print_float(_wasm, devices, number), do: write(devices.output, [Text.float(number), ?\n])

  @wasm "print_boolean (boolean)"
  def print_boolean(_wasm, devices, truth), do: write(devices.output, [to_string(truth), ?\n])

  @wasm "console_error, console_warn (string)"
  def console_error(_wasm, devices, text), do: write(devices.errors, [text, ?\n])

  @wasm "input, console_input (string) -> string"
  def input(_wasm, devices, prompt), do: ask(devices, prompt)

  @wasm "input_integer (string) -> integer"
  def input_integer(_wasm, devices, prompt) do
    Text.parse_integer(ask(devices, prompt)) || :error
  end

  @wasm "input_float (string) -> float"
  def input_float(_wasm, devices, prompt), do: Text.parse_float(ask(devices, prompt)) || :error

  @wasm "input_yesno (string) -> boolean"
  def input_yesno(_wasm, devices, prompt) do
    answer = devices |> ask(prompt) |> String.trim() |> String.downcase()
    answer in ["y", "yes", "true", "1"]
  end

  @wasm "input_range (string, i32, i32) -> integer"
  def input_range(_wasm, devices, prompt, low, high) do
    (Text.parse_integer(ask(devices, prompt)) || low) |> min(high) |> max(low)
  end

  defp write(device, text), do: IO.write(device, text)

  defp ask(devices, prompt) do
    write(devices.output, prompt)

    case IO.gets(devices.input, "") do
      line when is_binary(line) ->
        line |> String.trim_trailing("\n") |> String.trim_trailing("\r")

      _end_or_error ->
        ""
    end
  end
end
