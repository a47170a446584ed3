defmodule Beamr.DocsTest do
  use ExUnit.Case, async: true

  # The public modules: those that do not say @moduledoc false. (Implementations of protocols do
  # not say it either.)
  @documented (for module <- Application.spec(:beamr, :modules),
                   {:module, _} = Code.ensure_loaded(module),
                   {:docs_v1, _, _, _, moduledoc, _, docs} <- [Code.fetch_docs(module)],
                   moduledoc != :hidden,
                   not function_exported?(module, :__impl__, 1) do
                 {module, moduledoc, docs}
               end)

  test "there are public modules" do
    modules = for {module, _moduledoc, _docs} <- @documented, do: module
    assert [] = [Beamr, Beamr.Module, Beamr.Instance, Beamr.IO, Beamr.CallError] -- modules
    refute Beamr.Native in modules
  end

  for {module, moduledoc, docs} <- @documented do
    test "#{inspect(module)} is documented" do
      assert %{"en" => doc} = unquote(Macro.escape(moduledoc))
      assert doc =~ ~r/\w/
    end

    test "everything public in #{inspect(module)} is documented" do
      undocumented =
        for {{kind, name, arity}, _line, _signature, :none, _metadata} <-
              unquote(Macro.escape(docs)),
            not described_by_moduledoc?(unquote(module), kind, name) do
          {kind, name, arity}
        end

      assert undocumented == []
    end

    test "every public function of #{inspect(module)} has a spec" do
      {:ok, specs} = Code.Typespec.fetch_specs(unquote(module))
      specified = for {function, _spec} <- specs, do: function

      unspecified =
        for {{:function, name, arity}, _line, _signature, doc, _metadata} <-
              unquote(Macro.escape(docs)),
            doc != :hidden,
            {name, arity} not in specified do
          {name, arity}
        end

      assert unspecified == []
    end
  end

  # What an exception's fields are is in its moduledoc.
  defp described_by_moduledoc?(module, :type, :t) do
    function_exported?(module, :exception, 1)
  end

  defp described_by_moduledoc?(_module, _kind, _name), do: false
end
