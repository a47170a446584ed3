defmodule Beamr.CleanCase do
  @moduledoc false
  # Guests that call one function of Clean's host each.

  use ExUnit.CaseTemplate

  alias Beamr.Host.Clean

  using do
    quote do
      use Beamr.Case, async: true
      import Beamr.CleanCase
    end
  end

  @doc """
  What the function answers a guest. Arguments are strings, or values with their types; `result`
  is a type, `:string` or nil. Options: `form:` of strings, `:pair` or `:pointer`; `hosts:`, in
  the place of the group's own; `group:`; `module:`; others are for `Beamr.instantiate/2`.
  """
  def clean(name, args, result, opts \\ []) do
    {wasm, values} = guest(name, args, result, opts)
    called(wasm, values, result)
  end

  @doc "The guest itself, and the arguments for its `f`."
  def guest(name, args, result, opts \\ []) do
    {own, opts} = Keyword.split(opts, [:form, :module, :grant, :body])
    form = Keyword.get(own, :form, :pair)
    {words, data} = place(args, form)
    params = for {type, _value} <- words, do: type

    wasm =
      Beamr.instantiate!(
        """
        (module
          (import "#{Keyword.get(own, :module, "env")}" "#{name}" (func $f #{type(params, result)}))
          (memory (export "memory") 4)
          #{data}
          (func (export "f") #{type(params, result)}
            #{for n <- 0..(length(params) - 1)//1, do: "(local.get #{n})"}
            (call $f)))
        """,
        Keyword.put_new(opts, :hosts, Clean.hosts(Keyword.get(own, :grant, [])))
      )

    {wasm, for({_type, value} <- words, do: value)}
  end

  @doc "Calls a guest's `f`; strings are read out of its memory."
  def called(wasm, values, result) do
    case Beamr.call!(wasm, "f", values, unsigned: result == :string, timeout: 60_000) do
      [] -> nil
      [pointer] when result == :string -> string(wasm, pointer)
      [value] -> value
    end
  end

  defp string(_wasm, 0), do: ""

  defp string(wasm, pointer) do
    0 = rem(pointer, 4)
    Clean.read_string!(wasm, pointer)
  end

  defp type(params, result) do
    result = if result == :string, do: :i32, else: result

    "#{if params != [], do: "(param #{Enum.join(params, " ")})"} #{if result, do: "(result #{result})"}"
  end

  # Strings from address 1024 on, each behind its length, which pairs leave out.
  defp place(args, form) do
    {words, {data, _next}} =
      Enum.flat_map_reduce(args, {[], 1024}, fn
        text, {data, next} when is_binary(text) ->
          bytes = <<byte_size(text)::little-32, text::binary>>
          escaped = for <<byte <- bytes>>, do: "\\#{Base.encode16(<<byte>>)}"
          data = [data, ~s|(data (i32.const #{next}) "#{escaped}")\n|]

          words =
            case form do
              :pair -> [i32: next + 4, i32: byte_size(text)]
              :pointer -> [i32: next]
            end

          {words, {data, next + 8 + byte_size(text)}}

        {_type, _value} = word, placed ->
          {[word], placed}
      end)

    {words, data}
  end
end
